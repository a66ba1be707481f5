//! A gRPC server with the layers that every listener has.

use std::{convert::Infallible, time::Duration};

use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::{
    server::NamedService,
    service::Routes,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};
use tower::Service;

use crate::{
    cork::Corked,
    layers::{Guard, GuardOptions},
    lifecycle::Shutdown,
    listen::{Bound, Socket},
};

/// Options of one listener.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// `as` or `ds`: metrics are named `chancery_<prefix>_…`.
    pub prefix: &'static str,
    /// Requests under way at once, before more are told to come back.
    pub concurrent_requests_items: usize,
    /// A request whose deadline is nearer than this is refused before any work.
    pub deadline_floor: Duration,
    /// Streams and requests on one connection.
    pub streams_per_connection_items: u32,
}

impl ServerOptions {
    /// The defaults.
    pub fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            concurrent_requests_items: 1_024,
            deadline_floor: Duration::from_millis(5),
            streams_per_connection_items: 1_024,
        }
    }
}

/// Collects the services of a listener; health and reflection are added when it is served.
pub struct Services {
    routes: Routes,
    names: Vec<&'static str>,
}

impl Default for Services {
    fn default() -> Self {
        Self::new()
    }
}

impl Services {
    /// None yet.
    pub fn new() -> Self {
        Self {
            routes: Routes::default(),
            names: Vec::new(),
        }
    }

    /// Adds a generated server.
    #[must_use]
    pub fn with_service<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<tonic::body::Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }
}

/// Describes all messages and lists the services of one listener: the given ones, health and reflection itself.
fn reflection(names: &[&'static str]) -> tonic_reflection::server::Builder<'static> {
    let sets = [
        chancery_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let everywhere = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ];
    let builder = tonic_reflection::server::Builder::configure().include_reflection_service(false);
    let builder = sets.into_iter().fold(
        builder,
        tonic_reflection::server::Builder::register_encoded_file_descriptor_set,
    );
    names.iter().copied().chain(everywhere).fold(
        builder,
        tonic_reflection::server::Builder::with_service_name,
    )
}

/// Serves until the drain is over: after `soft` nothing new is accepted and requests under way finish, after `hard` they are cut off.
///
/// # Errors
/// The listener fails, or the reflection service cannot be built.
pub async fn serve_grpc(
    bound: Bound,
    services: Services,
    options: ServerOptions,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in &services.names {
        health
            .set_service_status(name, tonic_health::ServingStatus::Serving)
            .await;
    }
    let reflection = reflection(&services.names).build_v1()?;
    // Many tools ask for the older version only.
    let reflection_v1alpha = self::reflection(&services.names).build_v1alpha()?;
    let guard = GuardOptions {
        prefix: options.prefix,
        permits: options.concurrent_requests_items,
        deadline_floor: options.deadline_floor,
    };
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(60)))
        .max_concurrent_streams(options.streams_per_connection_items);
    if let Some(identity) = bound.tls.clone() {
        server = server.tls_config(ServerTlsConfig::new().identity(identity))?;
    }
    let router = server
        .layer(tower::layer::layer_fn(move |inner| {
            Guard::new(inner, guard.clone())
        }))
        .add_routes(services.routes)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_v1alpha);
    let soft = shutdown.soft();
    let names = services.names;
    let draining = async move {
        soft.cancelled().await;
        for name in names {
            health
                .set_service_status(name, tonic_health::ServingStatus::NotServing)
                .await;
        }
    };
    let serving = async {
        match bound.socket {
            Socket::Tcp(listener) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                let incoming = incoming.map(|socket| socket.map(Corked::new));
                router
                    .serve_with_incoming_shutdown(incoming, draining)
                    .await
            }
            Socket::Unix(listener) => {
                let incoming = UnixListenerStream::new(listener);
                router
                    .serve_with_incoming_shutdown(incoming, draining)
                    .await
            }
        }
    };
    let hard = shutdown.hard();
    tokio::select! {
        result = serving => Ok(result?),
        () = hard.cancelled() => Ok(()),
    }
}
