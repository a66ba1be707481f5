//! The simulation's time: it begins at the present, because openmls compares lifetimes with the system's clock, and goes on only when nobody has
//! anything to do.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use client_cli::surroundings::{Surroundings, System};
use tokio::time::Instant;

/// The servers' clock.
#[derive(Debug, Clone)]
pub struct Clock {
    base_micros: i64,
    began: Instant,
}

impl Clock {
    /// Begins now, inside a runtime whose time is paused.
    pub fn start() -> Self {
        let now = System.now();
        Self {
            base_micros: now * 1_000_000,
            began: Instant::now(),
        }
    }

    /// Unix microseconds.
    pub fn micros(&self) -> i64 {
        let elapsed = self.began.elapsed().as_micros();
        self.base_micros + i64::try_from(elapsed).unwrap_or(0)
    }

    /// Unix seconds.
    pub fn seconds(&self) -> i64 {
        self.micros() / 1_000_000
    }
}

/// What one device meets: a clock that may be wrong, and numbers that the seed decides.
#[derive(Debug)]
pub struct Skewed {
    clock: Clock,
    skew_seconds: AtomicI64,
    random: Arc<Mutex<fastrand::Rng>>,
}

impl Skewed {
    /// A right clock.
    pub fn new(clock: Clock, random: Arc<Mutex<fastrand::Rng>>) -> Self {
        Self {
            clock,
            skew_seconds: AtomicI64::new(0),
            random,
        }
    }

    /// Sets the clock wrong.
    pub fn skew(&self, seconds: i64) {
        self.skew_seconds.store(seconds, Ordering::Relaxed);
    }
}

impl Surroundings for Skewed {
    fn now(&self) -> i64 {
        self.clock.seconds() + self.skew_seconds.load(Ordering::Relaxed)
    }

    fn new_id(&self) -> [u8; 16] {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        random.u128(..).to_be_bytes()
    }

    fn jittered(&self, pause: Duration) -> Duration {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        pause.mul_f64(0.5 + random.f64() / 2.0)
    }
}
