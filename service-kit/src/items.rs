//! Loops over items that have nothing to do with each other (groups, devices, statuses): what fails for one is recorded
//! for that one, and the loop goes on. What does end such a loop is a failure of the database that all items share, see
//! [`ItemError`].

use std::{fmt::Display, panic::AssertUnwindSafe};

use futures_util::FutureExt as _;

use crate::db::{DbError, Transaction};

/// Whether the items behind a failure would fail like it.
pub trait ItemError: Display {
    /// True for a failure that lies in none of the items, such as a database that cannot be reached: the loop ends.
    fn is_shared(&self) -> bool;
}

impl ItemError for DbError {
    fn is_shared(&self) -> bool {
        self.is_shared()
    }
}

/// One pass of a named loop.
#[derive(Debug)]
pub struct Items {
    name: &'static str,
    failed: u64,
}

impl Items {
    /// A pass of the loop with this name. The name is in its log lines and in the metric
    /// `chancery_items_failed_total{loop}`.
    pub fn of(name: &'static str) -> Self {
        #[cfg(feature = "test-support")]
        fault::begun(name);
        Self { name, failed: 0 }
    }

    /// Does the work of one item; nothing where it failed or panicked, which is logged and counted. `item` names it in
    /// the log: an opaque id.
    ///
    /// # Errors
    /// A failure that all items share: the caller ends the loop.
    pub async fn one<T, E: ItemError>(
        &mut self,
        item: impl Display,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Option<T>, E> {
        #[cfg(feature = "test-support")]
        let work = fault::around(self.name, item.to_string(), work);
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(Ok(done)) => Ok(Some(done)),
            Ok(Err(error)) if error.is_shared() => Err(error),
            Ok(Err(error)) => {
                self.record(&item, &error);
                Ok(None)
            }
            Err(_panic) => {
                self.record(&item, &"it panicked");
                Ok(None)
            }
        }
    }

    /// As [`Items::one`], for items that share a transaction: what an item that failed has written is undone, and the
    /// transaction goes on.
    ///
    /// # Errors
    /// As [`Items::one`]; the transaction must then be rolled back.
    pub async fn one_in<T, E: ItemError + From<tokio_postgres::Error>>(
        &mut self,
        tx: &Transaction<'_>,
        item: impl Display,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Option<T>, E> {
        tx.batch_execute("SAVEPOINT item").await?;
        let done = self.one(item, work).await?;
        if done.is_none() {
            tx.batch_execute("ROLLBACK TO SAVEPOINT item").await?;
        }
        Ok(done)
    }

    /// How many items have failed in this pass.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    fn record(&mut self, item: &dyn Display, error: &dyn Display) {
        self.failed += 1;
        metrics::counter!("chancery_items_failed_total", "loop" => self.name).increment(1);
        tracing::warn!(loop_name = self.name, %item, %error, "an item failed; the loop goes on");
    }
}

/// Items that fail because a test wants it.
#[cfg(feature = "test-support")]
pub mod fault {
    use std::{
        collections::BTreeSet,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    #[derive(Debug)]
    struct Faults {
        broken: Option<(&'static str, String)>,
        done: BTreeSet<String>,
        loops: BTreeSet<&'static str>,
    }

    static FAULTS: Mutex<Faults> = Mutex::new(Faults {
        broken: None,
        done: BTreeSet::new(),
        loops: BTreeSet::new(),
    });

    fn faults() -> MutexGuard<'static, Faults> {
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one item of the loop with this name panic whenever it comes up, in every node of this process, until
    /// [`mend`].
    pub fn break_item(name: &'static str, item: &str) {
        let mut faults = faults();
        faults.broken = Some((name, item.to_owned()));
        faults.done.clear();
    }

    /// No item is broken any more.
    pub fn mend() {
        faults().broken = None;
    }

    /// Whether this item of the loop with this name came up and did not fail since the last [`break_item`].
    pub fn is_done(name: &'static str, item: &str) -> bool {
        faults().done.contains(&key(name, item))
    }

    /// The names of all loops that this process has begun.
    pub fn loops() -> BTreeSet<&'static str> {
        faults().loops.clone()
    }

    fn key(name: &str, item: &str) -> String {
        format!("{name} {item}")
    }

    pub(super) fn begun(name: &'static str) {
        faults().loops.insert(name);
    }

    pub(super) async fn around<T, E>(
        name: &'static str,
        item: String,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let broken = (faults().broken.as_ref())
            .is_some_and(|(in_loop, broken)| *in_loop == name && *broken == item);
        assert!(!broken, "a test asked for it");
        let done = work.await?;
        faults().done.insert(key(name, &item));
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_item_fails_alone_and_a_shared_failure_ends_the_loop() {
        let mut items = Items::of("test");
        let mut done = Vec::new();
        let mut ended = None;
        for n in 0..6 {
            let work = async move {
                match n {
                    1 => Err(DbError::Busy),
                    2 => panic!("as asked"),
                    4 => Err(DbError::Unavailable),
                    n => Ok(n),
                }
            };
            match items.one(n, work).await {
                Ok(one) => done.extend(one),
                Err(error) => {
                    ended = Some(error);
                    break;
                }
            }
        }
        assert_eq!(done, [0, 3]);
        assert_eq!(items.failed(), 2);
        assert!(matches!(ended, Some(DbError::Unavailable)));
    }
}
