//! `/metrics`, `/healthz`, `/readyz` over HTTP.

use std::sync::OnceLock;

use axum::{Router, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::{
    db::Db,
    lifecycle::Shutdown,
    listen::{Bound, Socket},
    telemetry::lines_dropped,
};

fn recorder() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| PrometheusBuilder::new().install_recorder().ok())
        .as_ref()
}

/// Serves until the drain begins. Ready means: not draining, and the database takes a write transaction.
///
/// # Errors
/// The socket fails.
pub async fn serve_ops(bound: Bound, db: Db, shutdown: Shutdown) -> anyhow::Result<()> {
    let draining = shutdown.soft();
    let ready = move || {
        let (db, draining) = (db.clone(), draining.clone());
        async move {
            if draining.is_cancelled() {
                return (StatusCode::SERVICE_UNAVAILABLE, "draining");
            }
            if writable(&db).await {
                (StatusCode::OK, "ready")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "no writable database")
            }
        }
    };
    let _early = recorder();
    let app = Router::new()
        .route("/healthz", get(|| async { "alive" }))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|| async {
                metrics::counter!("chancery_log_lines_dropped_total").absolute(lines_dropped());
                recorder().map(PrometheusHandle::render).unwrap_or_default()
            }),
        );
    let soft = shutdown.soft();
    let stop = async move { soft.cancelled().await };
    match bound.socket {
        Socket::Tcp(listener) => {
            axum::serve(listener, app)
                .with_graceful_shutdown(stop)
                .await?
        }
        Socket::Unix(listener) => {
            axum::serve(listener, app)
                .with_graceful_shutdown(stop)
                .await?
        }
    }
    Ok(())
}

/// A demoted primary still answers reads: ask for what the service needs.
async fn writable(db: &Db) -> bool {
    let Ok(client) = db.client().await else {
        return false;
    };
    client
        .query_one("/* ops::writable */ SELECT NOT pg_is_in_recovery()", &[])
        .await
        .is_ok_and(|row| row.get(0))
}
