//! How long ago a status feed was known to be whole: when its last heartbeat was signed, on this node's monotonic clock. Writers look at it without any
//! question to the database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chancery_proto::mutants::{self, Mutant};
use tokio::time::Instant;

/// A signed time that is not the present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untimely {
    /// It lies too far back: recorded and sent again, or of a service that hangs.
    #[error("it is {} s old", .seconds)]
    Old {
        /// How far.
        seconds: i64,
    },
    /// It lies too far ahead: a clock is wrong.
    #[error("it is {} s ahead of the clock", .seconds)]
    Ahead {
        /// How far.
        seconds: i64,
    },
}

/// How old a heartbeat is, where it is one of the present: its time may differ from the clock by `tolerance`. All in microseconds.
///
/// # Errors
/// [`Untimely`] beyond that.
pub fn age(signed_micros: i64, now_micros: i64, tolerance: i64) -> Result<i64, Untimely> {
    let age = now_micros.saturating_sub(signed_micros);
    let seconds = age.saturating_abs() / 1_000_000;
    if mutants::is_on(Mutant::FeedHeartbeatsTimeless) {
        return Ok(0);
    }
    if age > tolerance {
        return Err(Untimely::Old { seconds });
    }
    if age < -tolerance {
        return Err(Untimely::Ahead { seconds });
    }
    Ok(age.max(0))
}

/// The newest moment at which a feed was known to be whole: microseconds on some clock that begins at 0; negative before that.
#[derive(Debug, Default)]
struct Newest(AtomicI64);

impl Newest {
    /// It was whole so long before `now`. What is older than what is known says nothing.
    fn heard(&self, now: i64, age: i64) {
        self.0
            .fetch_max(now.saturating_sub(age.max(0)), Ordering::Relaxed);
    }

    /// The same where nothing was heard yet: what was remembered takes the place of the clock's beginning.
    fn recalled(&self, now: i64, age: i64) {
        let at = now.saturating_sub(age.max(0));
        let nothing_heard = self
            .0
            .compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed);
        if nothing_heard.is_err() {
            self.0.fetch_max(at, Ordering::Relaxed);
        }
    }

    fn age(&self, now: i64) -> i64 {
        now.saturating_sub(self.0.load(Ordering::Relaxed)).max(0)
    }
}

/// How long ago one feed was known to be whole, on this node's clock; cheap to clone.
#[derive(Debug, Clone)]
pub struct Freshness {
    began: Instant,
    newest: Arc<Newest>,
}

impl Default for Freshness {
    /// Counted from this moment, until it is heard.
    fn default() -> Self {
        Self {
            began: Instant::now(),
            newest: Arc::default(),
        }
    }
}

impl Freshness {
    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// It was whole so many microseconds ago. What is older than what is known says nothing.
    pub fn heard(&self, age_micros: i64) {
        self.newest.heard(self.now(), age_micros);
    }

    /// The same from what was remembered, which may lie before this began.
    pub fn recalled(&self, age_micros: i64) {
        self.newest.recalled(self.now(), age_micros);
    }

    /// How long ago it was known to be whole.
    pub fn age(&self) -> Duration {
        let age = self.newest.age(self.now());
        Duration::from_micros(u64::try_from(age).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;

    #[test]
    fn only_the_present_counts() {
        let cases = [
            (1_000, 1_000, Ok(0)),
            (1_000, 1_120, Ok(120 * S)),
            (1_000, 1_121, Err(Untimely::Old { seconds: 121 })),
            (0, 1_000_000, Err(Untimely::Old { seconds: 1_000_000 })),
            (1_120, 1_000, Ok(0)),
            (1_121, 1_000, Err(Untimely::Ahead { seconds: 121 })),
        ];
        for (signed, now, expected) in cases {
            assert_eq!(
                age(signed * S, now * S, 120 * S),
                expected,
                "{signed} {now}"
            );
        }
        assert!(age(i64::MIN, i64::MAX, 1).is_err());
        assert!(age(i64::MAX, i64::MIN, 1).is_err());
    }

    #[test]
    fn its_age_grows_until_it_is_heard_again() {
        let newest = Newest::default();
        assert_eq!(newest.age(10 * S), 10 * S);
        newest.heard(10 * S, 3 * S);
        assert_eq!(newest.age(10 * S), 3 * S);
        // Older than what is known.
        newest.heard(10 * S, 5 * S);
        assert_eq!(newest.age(10 * S), 3 * S);
        // Ahead of this clock: not younger than now.
        newest.heard(10 * S, -5 * S);
        assert_eq!(newest.age(10 * S), 0);
        assert_eq!(newest.age(11 * S), S);
        assert_eq!(newest.age(9 * S), 0);
    }

    #[test]
    fn what_is_remembered_counts_from_before_the_start() {
        let newest = Newest::default();
        newest.recalled(S, 100 * S);
        assert_eq!(newest.age(S), 100 * S);
        newest.recalled(S, 200 * S);
        assert_eq!(newest.age(S), 100 * S);
        newest.heard(2 * S, 2 * S - 1);
        newest.recalled(2 * S, 100 * S);
        assert_eq!(newest.age(2 * S), 2 * S - 1);
    }
}
