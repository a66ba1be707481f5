//! Start, drain, stop.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a drain may take before what is left is cut off.
pub const DRAIN: Duration = Duration::from_secs(20);

/// Two stages: *soft* stops accepting and ends streams with UNAVAILABLE, *hard* ends everything.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
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
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = self.soft.cancelled() => {}
            }
            self.begin();
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = tokio::time::sleep(DRAIN) => {}
            }
            self.abort();
        });
        Ok(())
    }
}
