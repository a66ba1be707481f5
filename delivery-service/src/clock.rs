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

/// What the database said last, and how long ago. Good for the end of a token; entries get the time that is read with their lock.
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

    /// The time in Unix microseconds; asks the database where its last answer is old.
    ///
    /// # Errors
    /// The database.
    pub async fn now(&self, db: &Db) -> Result<i64, DbError> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((micros, at)) = seen
            && at.elapsed() < FRESH
        {
            let since = i64::try_from(at.elapsed().as_micros()).unwrap_or(i64::MAX);
            return Ok(micros.saturating_add(since));
        }
        let client = db.client().await?;
        let now = store::groups::now(&client).await?;
        self.saw(now);
        Ok(now)
    }
}
