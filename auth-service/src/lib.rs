//! The Authentication Service: who is who. It knows people and devices, and no groups.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | options and limits |
//! | [`rpc`], [`watch`] | the tonic trait for clients; the stream of the status feed |
//! | [`admin`], [`operator`] | the tonic trait for operators, on its own listener; their commands |
//! | [`caller`] | token to caller |
//! | [`enroll`], [`credentials`], [`keys`] | invitation and key to device, certificates, what signs them |
//! | [`tokens`] | client assertion to access token |
//! | [`directory`], [`names`] | people and their devices; which names are equal |
//! | [`revocations`], [`access`], [`feed`] | ending access of devices, of people, with certificates; the one signed feed that says so |
//! | [`store`] | every SQL statement of the running service |
//! | [`migration`] | the schema brought up to date |
//! | [`error`] | errors and their one map to a status |
//! | [`node`] | what the use cases share |

pub mod access;
pub mod admin;
pub mod caller;
pub mod config;
pub mod credentials;
pub mod directory;
pub mod enroll;
pub mod error;
pub mod feed;
pub mod keys;
pub mod migration;
pub mod names;
pub mod node;
pub mod operator;
pub mod revocations;
pub mod rpc;
pub mod store;
pub mod tokens;
pub mod watch;

use std::sync::Arc;

use chancery_proto::auth::v1::{
    admin_service_server::AdminServiceServer, auth_service_server::AuthServiceServer,
};
use service_kit::{
    db::{Db, DbError, when_reachable},
    lifecycle::Shutdown,
    listen::Bound,
    migrate::{self, Migrations, Step},
    ops,
    server::{ServerOptions, Services, serve_grpc},
};

pub use config::Config;

/// The schema, in order.
pub const MIGRATIONS: Migrations = Migrations {
    service: "auth-service",
    steps: &[
        Step {
            name: "V1__initial",
            sql: include_str!("../migrations/V1__initial.sql"),
            oldest_binary: 1,
        },
        // A binary before it takes a device's second key for a second device.
        Step {
            name: "V2__p256_keys",
            sql: include_str!("../migrations/V2__p256_keys.sql"),
            oldest_binary: 2,
        },
        Step {
            name: "V3__access",
            sql: include_str!("../migrations/V3__access.sql"),
            oldest_binary: 2,
        },
        // A binary before it writes people whose handles have no key.
        Step {
            name: "V4__handle_keys",
            sql: include_str!("../migrations/V4__handle_keys.sql"),
            oldest_binary: 4,
        },
    ],
};

/// Where a node listens.
pub struct Listeners {
    /// Clients.
    pub public: Bound,
    /// Operators: whoever can connect here is one.
    pub admin: Bound,
    /// Metrics and health over HTTP.
    pub ops: Option<Bound>,
}

/// Serves until shutdown. Used by the binary, by `single-node` and by tests alike.
///
/// # Errors
/// Keys that cannot be used, a schema that does not fit this binary, a listener that fails, a task that ended before
/// the drain.
pub async fn serve(
    listeners: Listeners,
    config: Config,
    db: Db,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let served = serve_until_drained(listeners, config, db, &shutdown).await;
    shutdown.finish(served).await
}

async fn serve_until_drained(
    listeners: Listeners,
    config: Config,
    db: Db,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    if let Some(bound) = listeners.ops {
        let serving = ops::serve_ops(
            bound,
            db.clone(),
            ops::Readiness::default(),
            shutdown.clone(),
        );
        shutdown.spawn_unawaited("ops", serving);
    }
    let Some(now) = when_reachable(shutdown, || begin(&db)).await? else {
        return Ok(());
    };
    let (folder, domain) = (config.keys.clone(), config.domain.clone());
    let keys = tokio::task::spawn_blocking(move || {
        keys::Keys::load_or_make(&folder, &domain, now.unix_timestamp())
    })
    .await??;
    let request_bytes = usize::try_from(config.limits.request_bytes)?;
    let node = node::Node {
        db,
        keys: Arc::new(keys),
        signer: Arc::default(),
        moved: tokio::sync::watch::Sender::new(()),
        config: Arc::new(config),
    };
    let expiring = access::run_expiry(node.clone(), shutdown.clone());
    shutdown.spawn("certificate_expiry", expiring);
    let public = AuthServiceServer::new(rpc::Rpc::new(node.clone(), shutdown.clone()))
        .max_decoding_message_size(request_bytes);
    let admin =
        AdminServiceServer::new(admin::Admin::new(node)).max_decoding_message_size(request_bytes);
    let public = serve_grpc(
        listeners.public,
        Services::new().with_service(public),
        ServerOptions::new("as"),
        shutdown.clone(),
    );
    let admin = serve_grpc(
        listeners.admin,
        Services::new().with_service(admin),
        ServerOptions::new("as_admin"),
        shutdown.clone(),
    );
    tokio::try_join!(public, admin)?;
    Ok(())
}

/// Looks at the schema; the database's time.
async fn begin(db: &Db) -> anyhow::Result<time::OffsetDateTime> {
    migrate::check(db, &MIGRATIONS).await?;
    let client = db.client().await?;
    let (now, _) = store::clock(&client).await.map_err(DbError::from)?;
    Ok(now)
}
