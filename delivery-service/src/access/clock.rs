//! The database's clock, which is the one that counts, without asking it each time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use service_kit::db::{Db, DbError};
use tokio::time::Instant;

use crate::store;

/// An older answer is not counted on from.
const FRESH: Duration = Duration::from_secs(5);

/// What the database said last, and how long ago; never ahead of the database, and behind it by the time an answer takes. Entries get the time that is read
/// with their lock, or this one where nothing is read; none is earlier than the entry before it.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    seen: Arc<Mutex<Option<(i64, Instant)>>>,
}

impl Clock {
    /// The database said so just now, in Unix microseconds.
    pub fn saw(&self, micros: i64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Some((micros, Instant::now()));
    }

    /// The time in Unix microseconds, where the database's last answer is not old.
    pub fn recent(&self) -> Option<i64> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (micros, at) = seen?;
        let since = at.elapsed();
        (since < FRESH)
            .then(|| micros.saturating_add(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time in Unix microseconds; asks the database where its last answer is old.
    ///
    /// # Errors
    /// The database.
    pub async fn now(&self, db: &Db) -> Result<i64, DbError> {
        if let Some(now) = self.recent() {
            return Ok(now);
        }
        let client = db.client().await?;
        let now = store::groups::now(&client).await?;
        self.saw(now);
        Ok(now)
    }
}
