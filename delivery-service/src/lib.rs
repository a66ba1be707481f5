//! The Delivery Service: what came in which order. It orders opaque ciphertext and knows people only as opaque ids.
//!
//! **A request goes down**: rpc → commands | reading → request → ordering; commands append by log, and everything that
//! is stored goes through store. Background work is in upkeep. Nothing points up; a test reads the imports
//! (`e2e/tests/layers.rs`).
//!
//! | module | what it does |
//! |---|---|
//! | [`rpc`] | the tonic trait: decode, caller, command, encode |
//! | [`upkeep`] | background work: revocations, requests to members, retention |
//! | [`commands`] | what writes: lock, read under the lock, decide, append |
//! | [`reading`] | reading a log, following it, how a stream is carried |
//! | [`request`] | requests to values, checked without the lock |
//! | [`node`] | what a node is made of |
//! | [`log`] | the one place that appends; messages that come at the same time become one transaction |
//! | [`hub`] | in memory: who follows what, what was read for all of them, heads that need not be read again; how nodes wake each other |
//! | [`access`] | who calls: tokens, and the Authentication Services that sign them |
//! | [`config`] | options and limits |
//! | [`error`] | errors and their one map to a status |
//! | [`store`] | every SQL statement |
//! | [`wire`] | group references, ids and hashes as they are on the wire |
//! | [`ordering`] | **the ordering state machine** and the facts that it decides on, pure |

pub mod access;
pub mod commands;
pub mod config;
pub mod error;
pub mod hub;
pub mod log;
pub mod node;
pub mod ordering;
pub mod reading;
pub mod request;
pub mod rpc;
pub mod store;
pub mod upkeep;
pub mod wire;

use std::{convert::Infallible, sync::Arc, time::Duration};

use chancery_proto::delivery::v1::delivery_service_server::DeliveryServiceServer;
use service_kit::{
    db::{Db, DbError, TxError, when_reachable},
    lifecycle::Shutdown,
    listen::Bound,
    migrate::{self, Migrations, Step},
    ops,
    server::{ServerOptions, Services, serve_grpc},
};

pub use config::Config;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The schema, in order.
pub const MIGRATIONS: Migrations = Migrations {
    service: "delivery-service",
    steps: &[
        Step {
            name: "V1__initial",
            sql: include_str!("../migrations/V1__initial.sql"),
            oldest_binary: 1,
        },
        // An older node would begin epochs without their committer, and mark nobody.
        Step {
            name: "V2__recovery",
            sql: include_str!("../migrations/V2__recovery.sql"),
            oldest_binary: 2,
        },
        // An older node writes no hashes: the next Commit finds that they do not fit, and hashes the whole tree once.
        Step {
            name: "V3__tree_hashes",
            sql: include_str!("../migrations/V3__tree_hashes.sql"),
            oldest_binary: 2,
        },
        // An older node leaves it empty: such a leaf is looked for, and its device is not asked to warm the tree.
        Step {
            name: "V4__leaf_index",
            sql: include_str!("../migrations/V4__leaf_index.sql"),
            oldest_binary: 2,
        },
        // An older node moves a status feed on without the hash of its item: a newer one then reads the feed from its beginning.
        Step {
            name: "V5__status_feeds",
            sql: include_str!("../migrations/V5__status_feeds.sql"),
            oldest_binary: 2,
        },
        // An older node may give a replaced last resort, and does not count its claims.
        Step {
            name: "V6__last_resorts",
            sql: include_str!("../migrations/V6__last_resorts.sql"),
            oldest_binary: 2,
        },
        // An older node leaves it empty: such a key is read from the stored tree.
        Step {
            name: "V7__leaf_keys",
            sql: include_str!("../migrations/V7__leaf_keys.sql"),
            oldest_binary: 2,
        },
        Step {
            name: "V8__assume",
            sql: include_str!("../migrations/V8__assume.sql"),
            oldest_binary: 2,
        },
    ],
};

/// Where a node listens.
pub struct Listeners {
    /// Clients.
    pub public: Bound,
    /// Metrics and health over HTTP.
    pub ops: Option<Bound>,
}

/// Serves until shutdown. Used by the binary, by `single-node` and by tests alike.
///
/// # Errors
/// Limits that do not fit together, a schema that does not fit this binary, a listener that fails, a task that ended
/// before the drain.
pub async fn serve(
    listeners: Listeners,
    config: Config,
    db: Db,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    serve_knowing(
        listeners,
        config,
        db,
        shutdown,
        upkeep::status_feed::Kinds::ALL,
    )
    .await
}

/// The same as a program that knows these kinds of status only: how an older program meets a newer Authentication Service.
///
/// # Errors
/// As [`serve`].
pub async fn serve_knowing(
    listeners: Listeners,
    config: Config,
    db: Db,
    shutdown: Shutdown,
    kinds: upkeep::status_feed::Kinds,
) -> anyhow::Result<()> {
    let served = serve_until_drained(listeners, config, db, &shutdown, kinds).await;
    shutdown.finish(served).await
}

async fn serve_until_drained(
    listeners: Listeners,
    config: Config,
    db: Db,
    shutdown: &Shutdown,
    kinds: upkeep::status_feed::Kinds,
) -> anyhow::Result<()> {
    config.limits.check().map_err(|why| anyhow::anyhow!(why))?;
    let readiness = ops::Readiness::default();
    if let Some(bound) = listeners.ops {
        let serving = ops::serve_ops(bound, db.clone(), readiness.clone(), shutdown.clone());
        shutdown.spawn_unawaited("ops", serving);
    }
    let issuers = access::issuers::Issuers::new(&config, readiness);
    let begun = when_reachable(shutdown, || begin(&db, &config, &issuers));
    let Some((domains, followers)) = begun.await? else {
        return Ok(());
    };
    let most = usize::try_from(config.batch.append_remembered_items)?;
    let remembered = hub::head_cache::Remembered::new(most);
    let (hub, clock) = (
        hub::Hub::new(remembered.clone()),
        access::clock::Clock::default(),
    );
    let node = node::Node::from(node::Parts {
        gate: access::gate::Gate {
            issuers: issuers.clone(),
            domains: domains.clone(),
            audience: format!("ds:{}", config.domain),
            leeway: config.clock_leeway_seconds.into(),
            clock: clock.clone(),
            tokens: access::tokens::Tokens::new(config.token_cache_items),
        },
        batch: log::batch::Batcher::start(&db, &hub, &clock, &remembered, &config.batch, shutdown),
        hub,
        issuers: issuers.clone(),
        domains: domains.clone(),
        db: db.clone(),
        revoked: Arc::default(),
        catching_up: Arc::new(Semaphore::new(config.catch_up_items.into())),
        config,
    });
    spawn_tasks(&node, followers, kinds, shutdown);
    let request_bytes = usize::try_from(node.config.limits.request_bytes)?;
    let rpc = rpc::Rpc::new(node, shutdown.clone());
    let service = DeliveryServiceServer::new(rpc.clone()).max_decoding_message_size(request_bytes);
    let service = rpc::WithSubscribe::new(service, rpc, request_bytes);
    serve_grpc(
        listeners.public,
        Services::new().with_service(service),
        ServerOptions::new("ds"),
        shutdown.clone(),
    )
    .await
}

/// What goes on in a node beside its requests, until shutdown.
fn spawn_tasks(
    node: &node::Node,
    followers: Vec<Arc<access::issuers::Follower>>,
    kinds: upkeep::status_feed::Kinds,
    shutdown: &Shutdown,
) {
    let refresh = Duration::from_secs(node.config.auth_refresh_seconds);
    for follower in followers {
        let feed = upkeep::status_feed::StatusFeed::new(follower.clone(), node, kinds);
        shutdown.spawn("status_feed", feed.run(shutdown.clone()));
        let (db, issuers) = (node.db.clone(), node.issuers.clone());
        let refreshing = follower.run(db, issuers, refresh, shutdown.clone());
        shutdown.spawn("issuer_keys", until_drain(shutdown.soft(), refreshing));
    }
    hub::notify::run(&node.db, &node.hub, shutdown);
    shutdown.spawn("poll", upkeep::poll::run(node.clone(), shutdown.clone()));
    let (closing, hub) = (shutdown.soft(), node.hub.clone());
    shutdown.spawn("close_streams", async move {
        closing.cancelled().await;
        hub.close();
    });
    for _ in 0..node.config.followers_items {
        let reading = reading::shared_reader::run(node.clone(), shutdown.clone());
        shutdown.spawn("shared_reader", reading);
    }
    let pruning = upkeep::retention::run(node.clone(), shutdown.clone());
    shutdown.spawn("retention", until_drain(shutdown.soft(), pruning));
    let voiding = commands::recovery::run_voids(node.clone(), shutdown.clone());
    shutdown.spawn("voids", until_drain(shutdown.soft(), voiding));
    let marking = upkeep::revocations::run_sweeps(node.clone(), shutdown.clone());
    shutdown.spawn("revocations", until_drain(shutdown.soft(), marking));
}

/// Work that may take long and is dropped when the drain begins, wherever it is: what it has not committed is undone,
/// and another node, or this one after its next start, goes on with it.
async fn until_drain(drain: CancellationToken, work: impl Future<Output = ()>) {
    drain.run_until_cancelled(work).await;
}

/// Looks at the schema, numbers the domains, and recalls what their Authentication Services said.
async fn begin(
    db: &Db,
    config: &Config,
    issuers: &access::issuers::Issuers,
) -> anyhow::Result<(
    access::domains::Domains,
    Vec<Arc<access::issuers::Follower>>,
)> {
    migrate::check(db, &MIGRATIONS).await?;
    let domains = number_domains(db, config).await?;
    let mut followers = Vec::new();
    for auth_service in &config.auth_services {
        let declared = config.trust.declared();
        let follower = access::issuers::Follower::new(auth_service, &domains, declared)?;
        follower.recall(db, issuers).await?;
        followers.push(Arc::new(follower));
    }
    Ok((domains, followers))
}

async fn number_domains(db: &Db, config: &Config) -> Result<access::domains::Domains, DbError> {
    let names: Vec<String> = config
        .auth_services
        .iter()
        .map(|a| a.domain.clone())
        .collect();
    let numbered = db
        .run_tx("number_domains", move |tx| {
            let names = names.clone();
            Box::pin(async move {
                let mut pairs = Vec::new();
                for name in names {
                    let id = store::devices::domain_id(tx, &name).await?;
                    pairs.push((name, id));
                }
                Ok::<_, TxError<Infallible>>(pairs)
            })
        })
        .await
        .map_err(|error| match error {
            TxError::Db(error) => error,
            TxError::Rejected(never) => match never {},
        })?;
    Ok(access::domains::Domains::new(numbered))
}
