//! The pool, and transactions that are named, metered and repeated where that is safe.

mod listen;
mod pipeline;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
pub use deadpool_postgres::{GenericClient, Object, Transaction};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, PoolError, QueueMode, RecyclingMethod, Runtime,
};
use futures_util::future::BoxFuture;
use tokio_postgres::{
    NoTls,
    config::SslMode,
    error::{Severity, SqlState},
};

pub use listen::{Listener, NOTIFICATION_BYTES};
pub use pipeline::Pipeline;

use crate::lifecycle::Shutdown;

/// How the pool behaves.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Database pool")]
pub struct PoolOptions {
    /// Connections of this node.
    #[arg(long, env = "CHANCERY_POOL_CONNECTIONS_ITEMS", default_value_t = 16)]
    pub pool_connections_items: usize,
    /// How long a request waits for a connection before it is told to come back.
    #[arg(long, env = "CHANCERY_POOL_WAIT_MILLIS", default_value_t = 2_000)]
    pub pool_wait_millis: u64,
    /// How long a statement may wait for a row lock.
    #[arg(long, env = "CHANCERY_LOCK_TIMEOUT_MILLIS", default_value_t = 5_000)]
    pub lock_timeout_millis: u64,
    /// How long a statement may take.
    #[arg(
        long,
        env = "CHANCERY_STATEMENT_TIMEOUT_MILLIS",
        default_value_t = 30_000
    )]
    pub statement_timeout_millis: u64,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            pool_connections_items: 16,
            pool_wait_millis: 2_000,
            lock_timeout_millis: 5_000,
            statement_timeout_millis: 30_000,
        }
    }
}

/// SQLSTATE of a statement that rests on something and found it otherwise: raised by a schema's own function, caught as
/// [`DbError::NotAsAssumed`].
pub const NOT_AS_ASSUMED: &str = "ZA001";

/// What can go wrong with the database. Cheap to clone: one failure may be the answer to many requests.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DbError {
    /// A lock or a connection was not to be had in time; nothing happened.
    #[error("the database is busy")]
    Busy,
    /// The connection is gone; nothing was committed.
    #[error("the database cannot be reached")]
    Unavailable,
    /// The connection was lost at COMMIT: it may have been carried out.
    #[error("the connection was lost at COMMIT")]
    OutcomeUnknown,
    /// The work must be repeated from its beginning.
    #[error("the transaction must be repeated")]
    Conflict,
    /// The database's disk is full or fails, or it has no memory left; nothing happened.
    #[error("the database has no room")]
    NoRoom(#[source] Arc<tokio_postgres::Error>),
    /// A statement was sent that rests on something, and that is not so; nothing happened. See [`NOT_AS_ASSUMED`].
    #[error("something that a statement rests on is not so")]
    NotAsAssumed,
    /// A row with the same key is there already; nothing happened.
    #[error("a row with the same key exists")]
    Duplicate(#[source] Arc<tokio_postgres::Error>),
    /// A text of the request holds a zero octet, which protobuf allows and PostgreSQL does not; nothing happened.
    #[error("a text that the database cannot hold")]
    Text,
    /// Anything else.
    #[error("database error")]
    Internal(#[source] Arc<tokio_postgres::Error>),
}

impl From<tokio_postgres::Error> for DbError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(code) = error.code() else {
            // Without a code it never came from the server: a broken connection, or a fault of ours.
            let broken = error.is_closed()
                || std::error::Error::source(&error).is_some_and(|s| s.is::<std::io::Error>());
            return if broken {
                Self::Unavailable
            } else {
                Self::Internal(error.into())
            };
        };
        if let Some(why) = ended(&error) {
            tracing::warn!(code = code.code(), why, "the database ended a connection");
            return Self::Unavailable;
        }
        if *code == SqlState::LOCK_NOT_AVAILABLE
            || *code == SqlState::QUERY_CANCELED
            || *code == SqlState::TOO_MANY_CONNECTIONS
        {
            Self::Busy
        } else if *code == SqlState::T_R_SERIALIZATION_FAILURE
            || *code == SqlState::T_R_DEADLOCK_DETECTED
            || stale_plan(&error, code)
        {
            Self::Conflict
        } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION
            || code.code().starts_with("57P")
            || code.code().starts_with("08")
        {
            Self::Unavailable
        } else if code.code().starts_with("53") || code.code().starts_with("58") {
            Self::NoRoom(error.into())
        } else if *code == SqlState::CHARACTER_NOT_IN_REPERTOIRE {
            Self::Text
        } else if *code == SqlState::UNIQUE_VIOLATION {
            Self::Duplicate(error.into())
        } else if code.code() == NOT_AS_ASSUMED {
            Self::NotAsAssumed
        } else {
            Self::Internal(error.into())
        }
    }
}

/// Why the server ended the connection by itself, whatever it was at: it is shutting down, recovering, or could not even begin.
/// A role or a database that does not exist is a matter for whoever configured it, and does not pass.
fn ended(error: &tokio_postgres::Error) -> Option<&str> {
    let error = error.as_db_error()?;
    let fatal = matches!(
        error.parsed_severity(),
        Some(Severity::Fatal | Severity::Panic)
    );
    let configured = ["28", "3D", "42"];
    let passes = !configured
        .iter()
        .any(|class| error.code().code().starts_with(class));
    (fatal && passes).then(|| error.message())
}

/// "cached plan must not change result type": a migration changed a table under a prepared statement.
fn stale_plan(error: &tokio_postgres::Error, code: &SqlState) -> bool {
    *code == SqlState::FEATURE_NOT_SUPPORTED
        && error
            .as_db_error()
            .is_some_and(|e| e.message().contains("cached plan"))
}

impl From<PoolError> for DbError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => match Self::from(error) {
                // Whatever kept a connection from being made, nothing was done on it.
                Self::Internal(error) if error.code().is_none() => Self::Unavailable,
                other => other,
            },
            PoolError::Timeout(_) => Self::Busy,
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                Self::Unavailable
            }
        }
    }
}

/// Why a transaction did not commit.
#[derive(Debug)]
pub enum TxError<E> {
    /// The closure said no; rolled back.
    Rejected(E),
    /// The database.
    Db(DbError),
}

impl<E> From<tokio_postgres::Error> for TxError<E> {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Db(error.into())
    }
}

impl DbError {
    /// Whether the same may succeed later, without anybody's help.
    pub fn passes(&self) -> bool {
        match self {
            Self::Busy
            | Self::Unavailable
            | Self::OutcomeUnknown
            | Self::Conflict
            | Self::NoRoom(_) => true,
            Self::NotAsAssumed | Self::Duplicate(_) | Self::Text | Self::Internal(_) => false,
        }
    }

    /// Whether it lies in the database and not in what was asked of it: everything that is asked at the same time fails
    /// alike, so that it helps nobody to ask for a part of it.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Unavailable | Self::OutcomeUnknown | Self::NoRoom(_) => true,
            // Perhaps somebody holds the lock of one row.
            Self::Busy | Self::Conflict => false,
            Self::NotAsAssumed | Self::Duplicate(_) | Self::Text | Self::Internal(_) => false,
        }
    }
}

/// How often a service that starts before its database looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Does what a service needs before it can serve, again while the database cannot be reached: the two may start in any order. `None` when the
/// shutdown came first.
///
/// # Errors
/// What `work` says, unless it is a [`DbError`] that passes.
pub async fn when_reachable<T, F: Future<Output = anyhow::Result<T>> + Send>(
    shutdown: &Shutdown,
    work: impl Fn() -> F + Send,
) -> anyhow::Result<Option<T>> {
    let mut ticker = shutdown.ticker(LOOK_AGAIN);
    while ticker.next().await {
        match work().await {
            Err(error) if error.downcast_ref().is_some_and(DbError::passes) => {
                tracing::warn!(%error, "waiting for the database");
            }
            done => return done.map(Some),
        }
    }
    Ok(None)
}

/// Statements look rows up by their keys, and are planned once for each connection. What the planner believes about
/// sizes must not count: a table that was small or unknown when a statement was planned would be read whole from then
/// on, with all its dead rows; and the first row in the order of an index would be found by fetching and sorting all
/// that it believes to be few. A plan that is forbidden is only made to look expensive, and PostgreSQL compiles what
/// looks expensive (`jit`), for 20 to 500 ms each time.
const PLANS: &str = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_bitmapscan=off -c enable_hashjoin=off \
                     -c enable_mergejoin=off -c jit=off";

/// A handle to the pool; cheap to clone.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
    config: tokio_postgres::Config,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").finish_non_exhaustive()
    }
}

/// A connection that was in use so shortly ago is not asked whether it lives.
const FRESH: Duration = Duration::from_secs(1);
/// How long a connection has to say that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Asks a connection that was idle for a while whether it lives: a database that moved to another machine may leave connections that break only much
/// later. One that is in use all the time pays nothing for it.
fn alive() -> Hook {
    Hook::async_fn(|client, metrics| {
        Box::pin(async move {
            if metrics.last_used() < FRESH {
                return Ok(());
            }
            match tokio::time::timeout(SIGN_OF_LIFE, client.simple_query("")).await {
                Ok(answer) => answer.map(|_| ()).map_err(HookError::Backend),
                Err(_) => Err(HookError::message("no sign of life")),
            }
        })
    })
}

/// How often a transaction is tried when the server asks for a repeat.
const TRIES: u32 = 4;

/// What a try came to, unless it conflicted with another transaction and is to be made again; too often is busy.
fn verdict<T, E>(
    name: &'static str,
    tried: u32,
    done: Result<T, TxError<E>>,
) -> Option<Result<T, TxError<E>>> {
    match done {
        Err(TxError::Db(DbError::Conflict)) if tried < TRIES => {
            metrics::counter!("chancery_db_repeats_total", "tx" => name).increment(1);
            None
        }
        Err(TxError::Db(DbError::Conflict)) => Some(Err(TxError::Db(DbError::Busy))),
        done => Some(done),
    }
}

impl Db {
    /// Prepares a pool; connections are made when they are needed.
    ///
    /// # Errors
    /// The URL cannot be read, or asks for TLS (use a unix socket, loopback, or a TLS-terminating pooler beside the service).
    pub fn connect(url: &str, options: &PoolOptions) -> anyhow::Result<Self> {
        let mut config: tokio_postgres::Config = url.parse().context("the database URL")?;
        anyhow::ensure!(
            matches!(config.get_ssl_mode(), SslMode::Disable | SslMode::Prefer),
            "TLS to the database is not supported: use a unix socket, loopback, or a local TLS-terminating pooler"
        );
        let settings = format!(
            "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout=60000 {PLANS}",
            options.statement_timeout_millis, options.lock_timeout_millis
        );
        config
            .options(settings)
            .connect_timeout(Duration::from_secs(5))
            .tcp_user_timeout(Duration::from_secs(20));
        let manager = Manager::from_config(
            config.clone(),
            NoTls,
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let pool = Pool::builder(manager)
            .max_size(options.pool_connections_items)
            .wait_timeout(Some(Duration::from_millis(options.pool_wait_millis)))
            .create_timeout(Some(Duration::from_secs(5)))
            // The one used last has its statements planned and its tables known.
            .queue_mode(QueueMode::Lifo)
            .pre_recycle(alive())
            .runtime(Runtime::Tokio1)
            .build()?;
        Ok(Self { pool, config })
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// [`DbError::Busy`] when none is free in time, [`DbError::Unavailable`] when none can be made.
    pub async fn client(&self) -> Result<Object, DbError> {
        Ok(self.pool.get().await?)
    }

    /// Runs `work` in one transaction and commits it. `work` may run more than once: it takes copies of its inputs.
    ///
    /// # Errors
    /// [`TxError::Rejected`] with what `work` said, or the database's failure.
    pub async fn run_tx<T, E, F>(&self, name: &'static str, work: F) -> Result<T, TxError<E>>
    where
        F: for<'t> Fn(&'t Transaction<'t>) -> BoxFuture<'t, Result<T, TxError<E>>>,
    {
        let mut tried = 0;
        loop {
            tried += 1;
            if let Some(done) = verdict(name, tried, self.try_tx(&work).await) {
                return done;
            }
        }
    }

    /// The same for work that sends BEGIN and COMMIT in one round trip with statements of its own, see [`Pipeline`].
    ///
    /// # Errors
    /// As [`Db::run_tx`].
    pub async fn run_pipeline<T, E, F>(&self, name: &'static str, work: F) -> Result<T, TxError<E>>
    where
        F: for<'t> Fn(&'t Pipeline) -> BoxFuture<'t, Result<T, TxError<E>>>,
    {
        let mut tried = 0;
        loop {
            tried += 1;
            let client = self.client().await.map_err(TxError::Db)?;
            if let Some(done) = verdict(name, tried, Pipeline::run(client, &work).await) {
                return done;
            }
        }
    }

    async fn try_tx<T, E, F>(&self, work: &F) -> Result<T, TxError<E>>
    where
        F: for<'t> Fn(&'t Transaction<'t>) -> BoxFuture<'t, Result<T, TxError<E>>>,
    {
        let mut client = self.client().await.map_err(TxError::Db)?;
        let result = match client.transaction().await.map_err(DbError::from) {
            // It broke in the pool. Nothing was done on it: another one will do.
            Err(DbError::Unavailable) => Err(TxError::Db(DbError::Conflict)),
            Err(error) => Err(TxError::Db(error)),
            Ok(tx) => match work(&tx).await {
                Ok(value) => match tx.commit().await.map_err(DbError::from) {
                    Ok(()) => Ok(value),
                    Err(DbError::Unavailable) => Err(TxError::Db(DbError::OutcomeUnknown)),
                    Err(error) => Err(TxError::Db(error)),
                },
                Err(error) => {
                    // The transaction ends with its connection if this fails.
                    let _rolled_back = tx.rollback().await;
                    Err(error)
                }
            },
        };
        if let Err(TxError::Db(
            DbError::Unavailable | DbError::OutcomeUnknown | DbError::Conflict,
        )) = &result
        {
            // A demoted primary or a stale plan stays so: never back into the pool.
            drop(Object::take(client));
        }
        result
    }
}
