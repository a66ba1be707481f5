//! The profile's store: one SQLite file, values sealed at rest, exactly one writer, one transaction per step.
//!
//! | module | what |
//! |---|---|
//! | this one | the file, its format version, [`Store::step`] |
//! | `loaded` | groups that stay in memory between steps |
//! | [`rows`] | how values lie in the file, large ones in pieces |
//! | [`seal`] | how they are encrypted |
//! | [`mls`] | openmls' storage inside the same transaction |
//!
//! Two commands at once wait for each other; a process that dies in a step leaves the state before it.

mod loaded;
pub mod mls;
pub mod rows;
pub mod seal;

use std::{cell::Cell, path::Path, time::Duration};

use openmls::prelude::MlsGroup;
use openmls_rust_crypto::RustCrypto;
use rusqlite::{Connection, TransactionBehavior, backup::Backup};
use serde::{Serialize, de::DeserializeOwned};

use loaded::Loaded;
use rows::{Rows, Traffic};
use seal::Sealer;

/// The format that this program writes. Format 2, without pieces, is taken over; another one is refused. Format 1 was never released.
pub const FORMAT: i32 = 4;

/// How long a command waits for another one's step, where nobody says otherwise.
const WAIT: Duration = Duration::from_secs(30);
/// The write-ahead log is cut back to this when it was taken over into the file.
const LOG_BYTES: u32 = 4 << 20;
/// Free pages of a file are given back when they are more than this, and more than half of it.
const FREE_BYTES: i64 = 8 << 20;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite says no.
    #[error("sqlite: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A value does not open: another key, or a damaged file.
    #[error(
        "a value of the store does not open: the store key is another one, or the file is damaged"
    )]
    Sealed,
    /// A value that this program cannot read or write.
    #[error("encoding: {0}")]
    Encoding(String),
    /// Written by another version of this program.
    #[error(
        "the store has format {found}, this program knows {FORMAT}: use the client-cli that wrote it, or enroll anew"
    )]
    Format {
        /// Of the file.
        found: i32,
    },
    /// The folder or the key file.
    #[error("{0}")]
    Io(String),
    /// A value with more bytes than were asked for.
    #[error("a value of the store has more than {max} bytes")]
    TooLarge {
        /// The most that were asked for.
        max: usize,
    },
}

impl StoreError {
    /// Whether another process held the store for longer than this one waits.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy))
    }
}

/// A value that cannot be written or read, by its error's text.
fn encoding(error: impl std::fmt::Display) -> StoreError {
    StoreError::Encoding(error.to_string())
}

/// An open store.
pub struct Store {
    connection: Connection,
    sealer: Sealer,
    crypto: RustCrypto,
    traffic: Cell<Traffic>,
    loaded: Loaded,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a folder, or makes it. The folder's `store.key` opens the values.
    ///
    /// # Errors
    /// Another format, another key, or the file system.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Self::open_within(folder, WAIT)
    }

    /// The same, waiting for another process's step at most so long, here and in every step.
    ///
    /// # Errors
    /// As [`Store::open`], and [`StoreError::is_busy`].
    pub fn open_within(folder: &Path, wait: Duration) -> Result<Self, StoreError> {
        let sealer = Sealer::open(&folder.join("store.key"))?;
        let connection = Connection::open(folder.join("store.sqlite"))?;
        connection.busy_timeout(wait)?;
        connection.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA cache_size = -16384; \
             PRAGMA journal_size_limit = {LOG_BYTES};"
        ))?;
        Self::over(connection, sealer)
    }

    /// A store that ends with this value, sealed with a key that nobody else has: for members that live in one process, such as a test's or a simulation's.
    ///
    /// # Errors
    /// SQLite, or no randomness.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::over(Connection::open_in_memory()?, Sealer::random()?)
    }

    /// A copy as it is now, in memory: what a backup of the profile would hold.
    ///
    /// # Errors
    /// SQLite.
    pub fn copy(&self) -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory()?;
        Backup::new(&self.connection, &mut connection)?.run_to_completion(
            i32::MAX,
            Duration::ZERO,
            None,
        )?;
        Self::over(connection, self.sealer.clone())
    }

    fn over(connection: Connection, sealer: Sealer) -> Result<Self, StoreError> {
        let mut store = Self {
            connection,
            sealer,
            crypto: RustCrypto::default(),
            traffic: Cell::default(),
            loaded: Loaded::default(),
        };
        store.prepare()?;
        Ok(store)
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found: i32 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match found {
            0 => tx.execute_batch(
                "CREATE TABLE sealed (space TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, levels INTEGER NOT NULL DEFAULT 0, \
                 PRIMARY KEY (space, key)) WITHOUT ROWID;",
            )?,
            2 => tx.execute_batch("ALTER TABLE sealed ADD COLUMN levels INTEGER NOT NULL DEFAULT 0;")?,
            FORMAT => return Ok(()),
            found => return Err(StoreError::Format { found }),
        }
        tx.execute_batch(&format!(
            "CREATE TABLE pieces (owner BLOB NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (owner, name)) WITHOUT ROWID;\
             PRAGMA user_version = {FORMAT};"
        ))?;
        tx.commit()?;
        Ok(())
    }

    /// One transaction: everything that `work` writes stays, or nothing of it. No other process writes meanwhile.
    ///
    /// # Errors
    /// What `work` says, or the store.
    pub fn step<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&Step<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::from)?;
        let version: i64 = tx
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(StoreError::from)?;
        // A step that fails, or panics, takes them with it.
        let loaded = std::mem::take(&mut self.loaded).at(version);
        let step = Step {
            provider: mls::Provider::new(&self.crypto, Rows::new(&tx, &self.sealer, &self.traffic)),
            loaded: &loaded,
        };
        let done = work(&step)?;
        tx.commit().map_err(StoreError::from)?;
        self.loaded = loaded;
        Ok(done)
    }

    /// Gives the file system back what deleted values left free, where it is much; whether it was.
    ///
    /// # Errors
    /// SQLite, also where another process is using the store; nothing is lost then.
    pub fn give_back(&mut self) -> Result<bool, StoreError> {
        let number = |pragma| -> Result<i64, StoreError> {
            let sql = format!("PRAGMA {pragma}");
            Ok(self.connection.query_row(&sql, [], |row| row.get(0))?)
        };
        let (free, pages) = (number("freelist_count")?, number("page_count")?);
        if free * number("page_size")? < FREE_BYTES || free * 2 < pages {
            return Ok(false);
        }
        self.connection.execute_batch("VACUUM")?;
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(true)
    }

    /// What went through this store since it was opened.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    #[cfg(test)]
    fn rows_in(&self, table: &str) -> u32 {
        let count = format!("SELECT count(*) FROM {table}");
        let rows = self.connection.query_row(&count, [], |row| row.get(0));
        rows.expect("the table is there")
    }

    #[cfg(test)]
    fn damage(&self, sql: &str) {
        self.connection
            .execute_batch(sql)
            .expect("it can be damaged");
    }
}

/// One transaction of the store.
pub struct Step<'a> {
    provider: mls::Provider<'a>,
    loaded: &'a Loaded,
}

impl<'a> Step<'a> {
    /// openmls' view of the same transaction.
    pub fn provider(&self) -> &mls::Provider<'a> {
        &self.provider
    }

    /// A group that an earlier step gave back; it is the caller's now.
    pub fn take_loaded(&self, id: &[u8]) -> Option<MlsGroup> {
        self.loaded.take(id)
    }

    /// Gives a group back that is as the store has it, for whoever needs it next.
    pub fn keep_loaded(&self, group: MlsGroup) {
        self.loaded.keep(group);
    }

    fn rows(&self) -> &Rows<'a> {
        self.provider.rows()
    }

    /// A value.
    ///
    /// # Errors
    /// The store.
    pub fn get<T: DeserializeOwned>(
        &self,
        space: &'static str,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        self.rows().get(space, key)
    }

    /// A value of at most `max` bytes; what is larger is not read to its end.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], or the store.
    pub fn get_within<T: DeserializeOwned>(
        &self,
        space: &'static str,
        key: &[u8],
        max: usize,
    ) -> Result<Option<T>, StoreError> {
        self.rows().get_within(space, key, max)
    }

    /// Writes or replaces a value.
    ///
    /// # Errors
    /// The store.
    pub fn put<T: Serialize>(
        &self,
        space: &'static str,
        key: &[u8],
        value: &T,
    ) -> Result<(), StoreError> {
        self.rows().put(space, key, value)
    }

    /// Removes a value, if it is there.
    ///
    /// # Errors
    /// The store.
    pub fn delete(&self, space: &'static str, key: &[u8]) -> Result<(), StoreError> {
        self.rows().delete(space, key)
    }

    /// Keys with this prefix that sort after `after`, in order, at most `limit`, with their values.
    ///
    /// # Errors
    /// The store.
    pub fn list<T: DeserializeOwned>(
        &self,
        space: &'static str,
        prefix: &[u8],
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        self.rows().list(space, prefix, after, limit)
    }

    /// The keys of all KeyPackages whose private parts are here.
    ///
    /// # Errors
    /// The store.
    pub fn key_packages(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        self.rows().keys(mls::KEY_PACKAGES)
    }

    /// Removes a KeyPackage with its private parts, if it is there.
    ///
    /// # Errors
    /// The store.
    pub fn delete_key_package(&self, key: &[u8]) -> Result<(), StoreError> {
        self.rows().delete(mls::KEY_PACKAGES, key)
    }

    /// Runs `work`; when it fails, what it wrote is undone and the rest of the step goes on.
    ///
    /// # Errors
    /// What `work` says, or the store.
    pub fn attempt<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = self.rows().connection();
        let run = |sql| connection.execute_batch(sql).map_err(StoreError::from);
        run("SAVEPOINT attempt")?;
        match work() {
            Ok(done) => {
                run("RELEASE attempt")?;
                Ok(done)
            }
            Err(error) => {
                self.loaded.clear();
                run("ROLLBACK TO attempt; RELEASE attempt")?;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut Store, key: &[u8], value: &str) -> Result<(), StoreError> {
        store.step(|step| step.put("t", key, &value))
    }

    fn get(store: &mut Store, key: &[u8]) -> Option<String> {
        store
            .step(|step| step.get::<String>("t", key))
            .expect("readable")
    }

    #[test]
    fn a_step_that_fails_leaves_nothing_and_an_attempt_only_undoes_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        put(&mut store, b"a", "1").unwrap();
        let failed: Result<(), StoreError> = store.step(|step| {
            step.put("t", b"a", &"2")?;
            Err(StoreError::Io("no".into()))
        });
        assert!(failed.is_err());
        assert_eq!(get(&mut store, b"a").as_deref(), Some("1"));
        store
            .step(|step| {
                step.put("t", b"b", &"kept")?;
                let undone: Result<(), StoreError> = step.attempt(|| {
                    step.put("t", b"b", &"undone")?;
                    step.put("t", b"c", &"undone")?;
                    Err(StoreError::Io("no".into()))
                });
                assert!(undone.is_err());
                step.put("t", b"d", &"kept")
            })
            .unwrap();
        let seen = [b"b", b"c", b"d"].map(|key| get(&mut store, key));
        assert_eq!(
            seen,
            [Some("kept".to_owned()), None, Some("kept".to_owned())]
        );
    }

    #[test]
    fn lists_are_ordered_and_stay_in_their_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        for key in [
            &b"a\xff\x01"[..],
            b"a\xff\x02",
            b"a\xff\xff",
            b"b",
            b"a\xfe",
        ] {
            put(&mut store, key, "x").unwrap();
        }
        let list = |store: &mut Store, after: &[u8], limit| {
            let found: Vec<(Vec<u8>, String)> = store
                .step(|step| step.list("t", b"a\xff", after, limit))
                .unwrap_or_else(|error: StoreError| panic!("{error}"));
            found.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(
            list(&mut store, b"", 9),
            [
                b"a\xff\x01".to_vec(),
                b"a\xff\x02".to_vec(),
                b"a\xff\xff".to_vec()
            ]
        );
        assert_eq!(list(&mut store, b"a\xff\x01", 1), [b"a\xff\x02".to_vec()]);
    }

    #[test]
    fn nothing_readable_lies_in_the_file_and_another_key_opens_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        put(&mut store, b"a", "a text that must not be found anywhere").unwrap();
        drop(store);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(!text.contains("must not be found"));
        }
        std::fs::remove_file(dir.path().join("store.key")).unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let opened = store.step(|step| step.get::<String>("t", b"a"));
        assert!(matches!(opened, Err(StoreError::Sealed)));
    }

    #[test]
    fn values_cannot_change_places() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        put(&mut store, b"a", "1").unwrap();
        store.damage("UPDATE sealed SET key = x'62'");
        let opened = store.step(|step| step.get::<String>("t", b"b"));
        assert!(matches!(opened, Err(StoreError::Sealed)));
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let path = dir.path().join("store.sqlite");
        Connection::open(path)
            .unwrap()
            .execute_batch("PRAGMA user_version = 99")
            .unwrap();
        let refused = Store::open(dir.path());
        assert!(matches!(refused, Err(StoreError::Format { found: 99 })));
    }

    #[test]
    fn a_store_of_format_2_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        put(&mut store, b"a", "1").unwrap();
        // As format 2 was: no pieces, and no word of them.
        store.damage(
            "DROP TABLE pieces; ALTER TABLE sealed DROP COLUMN levels; PRAGMA user_version = 2",
        );
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(get(&mut store, b"a").as_deref(), Some("1"));
        let large = "a long story ".repeat(10_000);
        put(&mut store, b"b", &large).unwrap();
        assert_eq!(get(&mut store, b"b"), Some(large));
    }

    #[test]
    fn what_is_larger_than_asked_for_is_not_read_and_its_space_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(12 << 20)
        .collect();
        let size = || {
            std::fs::metadata(dir.path().join("store.sqlite"))
                .unwrap()
                .len()
        };
        store
            .step(|step| step.put("t", b"large", &noise))
            .unwrap_or_else(|error: StoreError| panic!("{error}"));
        put(&mut store, b"small", "1").unwrap();
        let before = store.traffic().read_bytes;
        let refused: Result<Option<Vec<u8>>, StoreError> =
            store.step(|step| step.get_within("t", b"large", 1 << 20));
        assert!(
            matches!(refused, Err(StoreError::TooLarge { .. })),
            "{refused:?}"
        );
        assert!(store.traffic().read_bytes - before < 2 << 20);
        store
            .step(|step| step.delete("t", b"large"))
            .unwrap_or_else(|error: StoreError| panic!("{error}"));
        assert_eq!(store.rows_in("pieces"), 0);
        assert!(store.give_back().unwrap());
        assert!(size() < 1 << 20, "{} bytes", size());
        assert_eq!(get(&mut store, b"small").as_deref(), Some("1"));
        assert!(!store.give_back().unwrap());
    }

    #[test]
    fn writers_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut store = Store::open(dir.path()).unwrap();
                    for _ in 0..20 {
                        store
                            .step(|step| {
                                let n: u32 = step.get("t", b"n")?.unwrap_or(0);
                                step.put("t", b"n", &(n + 1))
                            })
                            .unwrap_or_else(|error: StoreError| panic!("{error}"));
                    }
                });
            }
        });
        let mut store = Store::open(dir.path()).unwrap();
        let n = store.step(|step| step.get::<u32>("t", b"n")).unwrap();
        assert_eq!(n, Some(80));
    }
}
