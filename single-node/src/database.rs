//! The node's PostgreSQL: prepared, watched by a thread of its own, started again when it dies, stopped last.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use service_kit::lifecycle::Shutdown;
use service_kit::local_postgres::{Cluster, ClusterOptions};
use tokio::sync::watch;

/// How often the server is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// The first and the longest pause between two attempts to start it again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A database with two roles: one owns the tables and migrates, the other serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Database {
    pub(crate) owner_url: String,
    pub(crate) app_url: String,
    pub(crate) app_role: String,
}

impl Database {
    /// Makes sure that the database `name` and its roles exist.
    pub(crate) fn ensure(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let (owner, app_role) = (format!("{name}_owner"), format!("{name}_app"));
        cluster.ensure_role(&owner)?;
        cluster.ensure_role(&app_role)?;
        cluster.ensure_database(name, &owner, &[&app_role])?;
        Ok(Self {
            owner_url: cluster.url(name, &owner),
            app_url: cluster.url(name, &app_role),
            app_role,
        })
    }
}

/// A PostgreSQL under supervision.
#[derive(Debug)]
pub(crate) struct Supervised {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<std::thread::Result<anyhow::Result<()>>>,
    pid: watch::Receiver<u32>,
}

impl Supervised {
    /// Starts the cluster, runs `prepare` on it, and watches it from then on: a watch that ends before it is stopped
    /// begins the drain. Blocks; not for a runtime's own thread.
    pub(crate) fn start<T>(
        options: ClusterOptions,
        shutdown: &Shutdown,
        prepare: impl FnOnce(&Cluster) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Self, T)> {
        let cluster = Cluster::start(options)?;
        let prepared = prepare(&cluster)?;
        let (stop, stopped) = mpsc::channel();
        let (pid_sender, pid) = watch::channel(cluster.pid().unwrap_or_default());
        let thread = shutdown
            .spawn_thread("postgres_supervisor", move || {
                supervise(cluster, &stopped, &pid_sender)
            })
            .context("cannot start the supervisor's thread")?;
        Ok((Self { stop, thread, pid }, prepared))
    }

    /// PostgreSQL's process id, now and after every restart.
    pub(crate) fn pid(&self) -> watch::Receiver<u32> {
        self.pid.clone()
    }

    /// Stops PostgreSQL (fast: sessions end, a checkpoint is written). Blocks.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        // A supervisor that ended already says so itself.
        drop(self.stop);
        let ended = self.thread.join().and_then(|ended| ended);
        ended.map_err(|_| anyhow::anyhow!("the supervisor's thread panicked"))?
    }
}

fn supervise(
    mut cluster: Cluster,
    stopped: &mpsc::Receiver<()>,
    pid: &watch::Sender<u32>,
) -> anyhow::Result<()> {
    let mut pause = BACK_OFF.0;
    let mut wait = WATCH_EVERY;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(wait) {
        wait = WATCH_EVERY;
        let status = match cluster.exited() {
            Ok(Some(status)) => status,
            Ok(None) => {
                pause = BACK_OFF.0;
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "cannot see whether PostgreSQL runs");
                continue;
            }
        };
        if let Some(status) = status {
            tracing::error!(%status, "PostgreSQL ended; starting it again");
        }
        match cluster.restart() {
            Ok(()) => {
                let now = cluster.pid().unwrap_or_default();
                tracing::info!(pid = now, "PostgreSQL runs again");
                pid.send_replace(now);
            }
            Err(error) => {
                tracing::error!(%error, retry_in = ?pause, "PostgreSQL does not start");
                wait = pause;
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }
    cluster.stop()?;
    Ok(())
}
