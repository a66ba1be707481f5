//! A whole server side in one process: a private PostgreSQL, an Authentication Service for each domain, and a Delivery Service.
//!
//! | module | one line |
//! |---|---|
//! | `options` | the options of `single-node up` |
//! | `database` | the supervised PostgreSQL; a database and two roles for each service |
//! | `services` | migrations, listeners and `serve` of both services |
//! | `node_file` | `node.json`: where the running node can be reached |
//! | `hints` | the commands to type next |
//!
//! Nothing here is only for development: the services are the ones that run alone, and the database is durable. Everything may be killed at any moment;
//! the next start ends what was left behind and goes on.

mod database;
mod hints;
mod node_file;
mod options;
mod services;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use service_kit::lifecycle::Shutdown;
use service_kit::local_postgres::{self, ClusterOptions, Profile};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};

pub use node_file::{AuthFile, FILE_NAME, NodeFile};
pub use options::Options;

use database::Supervised;
use services::{Databases, Running};

/// Runs a node until `shutdown` begins (services drain, then PostgreSQL stops) or a service fails.
///
/// # Errors
/// When PostgreSQL cannot be had, a migration or a listener fails, or a service ends by itself.
pub async fn run(options: Options, shutdown: Shutdown) -> anyhow::Result<()> {
    options.check()?;
    let dir = prepare_folder(&options.data)?;
    let (postgres, databases) = {
        let (options, dir, shutdown) = (options.clone(), dir.clone(), shutdown.clone());
        spawn_blocking(move || start_database(&options, &dir, &shutdown)).await??
    };
    let served = serve(&options, &dir, databases, postgres.pid(), &shutdown).await;
    // Whatever ended the services: PostgreSQL's supervisor does not end by itself.
    shutdown.begin();
    tracing::info!("stopping PostgreSQL");
    let stopped = spawn_blocking(move || postgres.stop()).await?;
    served.and(stopped)
}

/// Makes the folder; on behalf of root, other accounts may pass through it, since an unprivileged one runs PostgreSQL inside.
fn prepare_folder(data: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
    let dir = fs::canonicalize(data)?;
    local_postgres::allow_passage(&dir)?;
    Ok(dir)
}

fn start_database(
    options: &Options,
    dir: &Path,
    shutdown: &Shutdown,
) -> anyhow::Result<(Supervised, Databases)> {
    let mut cluster = ClusterOptions::new(dir.join("postgres"), Profile::Durable);
    cluster.pg_bin = options.pg_bin.clone();
    cluster.settings = options.postgres_settings.clone();
    Supervised::start(cluster, shutdown, |cluster| {
        services::prepare(cluster, &options.domains)
    })
}

async fn serve(
    options: &Options,
    dir: &Path,
    databases: Databases,
    mut postgres_pid: watch::Receiver<u32>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    // Only now is it certain that no other node runs here.
    let last = NodeFile::take(dir);
    let Running {
        mut tasks,
        mut file,
    } = services::start(options, dir, databases, last.as_ref(), shutdown).await?;
    file.postgres_pid = *postgres_pid.borrow_and_update();
    file.write(dir)?;
    tracing::info!(
        delivery = %file.delivery_url,
        auth = ?file.auth.iter().map(|auth| &auth.url).collect::<Vec<_>>(),
        "the node is ready"
    );
    if options.hints {
        hints::print(&file);
    }
    let draining = shutdown.soft();
    loop {
        tokio::select! {
            // In this order: a service that ends because of the shutdown did not end by itself.
            biased;
            () = draining.cancelled() => break,
            ended = tasks.join_next() => {
                let failure = ended_early(ended);
                shutdown.begin();
                drain(tasks).await?;
                return Err(failure);
            }
            Ok(()) = postgres_pid.changed() => {
                file.postgres_pid = *postgres_pid.borrow_and_update();
                // A disk without room is no reason to stop serving.
                if let Err(error) = file.write(dir) {
                    tracing::error!(error = format!("{error:#}"), "node.json names an old PostgreSQL");
                }
            }
        }
    }
    drain(tasks).await
}

type Ended = Option<Result<anyhow::Result<()>, tokio::task::JoinError>>;

fn ended_early(ended: Ended) -> anyhow::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => anyhow::Error::new(error).context("a service panicked"),
        Some(Ok(Ok(()))) | None => anyhow::anyhow!("a service ended by itself"),
    }
}

/// Waits for all services; the first failure counts.
async fn drain(mut tasks: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.context("a service panicked").and_then(|ended| ended);
        result = result.and(ended);
    }
    result
}
