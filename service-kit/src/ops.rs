//! `/metrics`, `/healthz`, `/readyz` over HTTP.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

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

/// What a service says of itself on `/readyz` besides its database, by name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Condition>>>);

/// Something that whoever operates the service should know.
#[derive(Debug)]
struct Condition {
    text: String,
    unready: bool,
}

impl Readiness {
    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Condition>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, name: &str, text: String, unready: bool) {
        self.held()
            .insert(name.to_owned(), Condition { text, unready });
    }

    /// Says that something is wrong, while the service can still serve: it stays ready.
    pub fn warn(&self, name: &str, text: impl Into<String>) {
        self.put(name, text.into(), false);
    }

    /// Makes the service unready: it could serve nobody.
    pub fn unready(&self, name: &str, text: impl Into<String>) {
        self.put(name, text.into(), true);
    }

    /// What was said under this name is over.
    pub fn clear(&self, name: &str) {
        self.held().remove(name);
    }

    /// Whether nothing makes the service unready, and all that was said, one line for each name.
    pub fn told(&self) -> (bool, String) {
        let conditions = self.held();
        let lines = conditions
            .iter()
            .map(|(name, condition)| format!("\n{name}: {}", condition.text));
        (conditions.values().all(|c| !c.unready), lines.collect())
    }
}

/// Serves until the drain begins. Ready means: not draining, the database takes a write transaction, and nothing in `readiness` says otherwise.
/// The first line of `/readyz` is the answer, the others are what `readiness` holds.
///
/// # Errors
/// The socket fails.
pub async fn serve_ops(
    bound: Bound,
    db: Db,
    readiness: Readiness,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let draining = shutdown.soft();
    let ready = move || {
        let (db, draining) = (db.clone(), draining.clone());
        let readiness = readiness.clone();
        async move {
            let unready = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
            if draining.is_cancelled() {
                return unready("draining");
            }
            if !writable(&db).await {
                return unready("no writable database");
            }
            match readiness.told() {
                (true, lines) => (StatusCode::OK, format!("ready{lines}")),
                (false, lines) => unready(&format!("not ready{lines}")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_said_and_only_what_makes_unready_does() {
        let readiness = Readiness::default();
        assert_eq!(readiness.told(), (true, String::new()));
        readiness.warn("feed", "old");
        assert_eq!(readiness.told(), (true, "\nfeed: old".into()));
        readiness.unready("keys", "unknown");
        readiness.warn("feed", "older");
        let said = "\nfeed: older\nkeys: unknown".to_owned();
        assert_eq!(readiness.told(), (false, said));
        readiness.clear("keys");
        readiness.clear("feed");
        readiness.clear("never said");
        assert_eq!(readiness.told(), (true, String::new()));
    }
}
