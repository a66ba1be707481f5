//! A transaction whose BEGIN and COMMIT cost no round trips of their own.

use std::sync::atomic::{AtomicU8, Ordering};

use deadpool_postgres::Object;
use futures_util::future::BoxFuture;
use tokio_postgres::Error;

use super::{DbError, TxError};

/// Nothing was sent.
const IDLE: u8 = 0;
/// BEGIN was sent.
const OPEN: u8 = 1;
/// COMMIT was sent: from here a broken connection leaves the outcome unknown.
const COMMITTING: u8 = 2;
/// COMMIT was answered.
const COMMITTED: u8 = 3;

/// One connection and its transaction. [`Pipeline::begin`] and [`Pipeline::commit`] are futures that send when they are first polled, as statements
/// that were prepared before do: joined in order, they travel together and are carried out in that order. A statement that fails makes a COMMIT
/// behind it roll back.
///
/// A connection whose transaction was left open never goes back into the pool.
#[derive(Debug)]
pub struct Pipeline {
    client: Option<Object>,
    state: AtomicU8,
}

impl Pipeline {
    /// The connection, for statements.
    ///
    /// # Panics
    /// Never: it is taken only when this value is dropped.
    pub fn client(&self) -> &Object {
        self.client.as_ref().expect("taken in drop only")
    }

    /// Sends BEGIN; `lock_timeout_millis` bounds each wait for a lock in this transaction instead of what the pool says.
    ///
    /// # Errors
    /// The connection.
    pub async fn begin(&self, lock_timeout_millis: Option<u32>) -> Result<(), Error> {
        self.state.store(OPEN, Ordering::Relaxed);
        match lock_timeout_millis {
            None => self.client().batch_execute("BEGIN").await,
            Some(millis) => {
                let sql = format!("BEGIN; SET LOCAL lock_timeout = {millis}");
                self.client().batch_execute(&sql).await
            }
        }
    }

    /// Sends COMMIT.
    ///
    /// # Errors
    /// The connection: what became of the transaction is then unknown.
    pub async fn commit(&self) -> Result<(), Error> {
        self.state.store(COMMITTING, Ordering::Relaxed);
        self.client().batch_execute("COMMIT").await?;
        self.state.store(COMMITTED, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn run<T, E, F>(client: Object, work: &F) -> Result<T, TxError<E>>
    where
        F: for<'t> Fn(&'t Self) -> BoxFuture<'t, Result<T, TxError<E>>>,
    {
        let mut pipeline = Self {
            client: Some(client),
            state: AtomicU8::new(IDLE),
        };
        let done = work(&pipeline).await;
        let committing = *pipeline.state.get_mut() >= COMMITTING;
        match &done {
            // A demoted primary or a stale plan stays so: never back into the pool.
            Err(TxError::Db(
                DbError::Unavailable | DbError::OutcomeUnknown | DbError::Conflict,
            )) => {
                drop(pipeline.client.take().map(Object::take));
            }
            _ => pipeline.end().await,
        }
        done.map_err(|error| match error {
            TxError::Db(DbError::Unavailable) if committing => TxError::Db(DbError::OutcomeUnknown),
            // Nothing was committed on it: another connection will do.
            TxError::Db(DbError::Unavailable) => TxError::Db(DbError::Conflict),
            error => error,
        })
    }

    /// Leaves the connection as it was found, if it is any good still.
    async fn end(&mut self) {
        let state = self.state.get_mut();
        if *state == IDLE || *state == COMMITTED {
            return;
        }
        // Outside of a transaction this is a warning and nothing else.
        if self.client().batch_execute("ROLLBACK").await.is_ok() {
            self.state = AtomicU8::new(IDLE);
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let state = *self.state.get_mut();
        if state == OPEN || state == COMMITTING {
            drop(self.client.take().map(Object::take));
        }
    }
}
