//! Start, drain, stop; and the tasks that live in between.

mod tasks;

use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use tasks::Tasks;
pub use tasks::{TaskEnded, TaskOutput, spawn_short};

/// How long a drain may take before what is left is cut off.
pub const DRAIN: Duration = Duration::from_secs(20);

/// Raises the soft limit of open files to the hard one: each connection is a file, and the soft default is meant for programs that cannot have many.
pub fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Two stages: *soft* stops accepting and ends streams with UNAVAILABLE, *hard* ends everything. It also holds the
/// tasks that are to live until the drain: one that ends before begins the drain, and makes the process fail.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
    tasks: Tasks,
}

impl Shutdown {
    /// Nothing is shutting down.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the drain begins.
    pub fn soft(&self) -> CancellationToken {
        self.soft.clone()
    }

    /// Cancelled when the drain is over.
    pub fn hard(&self) -> CancellationToken {
        self.hard.clone()
    }

    /// Comes around at once, and then every `period` until the drain begins.
    ///
    /// # Panics
    /// `period` is zero.
    pub fn ticker(&self, period: Duration) -> Ticker {
        let mut every = interval(period);
        // After a long turn the next one waits its whole time: a background job must not hurry.
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ticker {
            every,
            stop: self.soft(),
        }
    }

    /// Begins the drain.
    pub fn begin(&self) {
        self.soft.cancel();
    }

    /// Ends at once.
    pub fn abort(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// The first SIGTERM or SIGINT begins the drain; a second one, or [`DRAIN`], ends it.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn on_signals(self) -> std::io::Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        self.spawn_unawaited("signals", async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = shutdown.soft.cancelled() => {}
            }
            shutdown.begin();
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = tokio::time::sleep(DRAIN) => {}
            }
            shutdown.abort();
        });
        Ok(())
    }
}

/// The beat of a background job; see [`Shutdown::ticker`].
#[derive(Debug)]
pub struct Ticker {
    every: Interval,
    stop: CancellationToken,
}

impl Ticker {
    /// Waits for the next turn; false when there is none any more.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            _ = self.every.tick() => true,
        }
    }
}
