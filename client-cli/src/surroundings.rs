//! Time and chance, as a member meets them: the one place that reads a clock or draws a number, so that a simulation can put its own in its place.

use std::time::Duration;

use uuid::Uuid;

use crate::fault;

/// Where time and chance come from.
pub trait Surroundings: std::fmt::Debug + Send + Sync {
    /// Unix seconds.
    fn now(&self) -> i64;
    /// 16 bytes that nobody can guess.
    fn new_id(&self) -> [u8; 16];
    /// Between a half and the whole: many clients that lost one server do not come back at once.
    fn jittered(&self, pause: Duration) -> Duration;
}

/// The system's clock and randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Surroundings for System {
    fn now(&self) -> i64 {
        time::OffsetDateTime::now_utc().unix_timestamp() + fault::clock_skew()
    }

    fn new_id(&self) -> [u8; 16] {
        *Uuid::new_v4().as_bytes()
    }

    fn jittered(&self, pause: Duration) -> Duration {
        let mut byte = [0];
        let share = match getrandom::fill(&mut byte) {
            Ok(()) => f64::from(byte[0]) / 510.0,
            Err(_) => 0.25,
        };
        pause.mul_f64(0.5 + share)
    }
}
