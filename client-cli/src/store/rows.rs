//! How values lie in the file: a small one is one row; a large one is cut where its content says so, and its pieces are rows of their own, named by what is
//! in them. Who writes a large value again writes only the pieces that are new.
//!
//! openmls writes a group's whole tree for every Commit (megabytes at 10,000 members) and the secrets of all its members for every message, and few bytes
//! of either change. A cut depends on the bytes around it only, so what moved is recognised too.
//!
//! A value in pieces is kept as the list of their names; a list that is long itself is kept the same way. `levels` says how often: 0 is the value itself.

use std::{cell::Cell, collections::BTreeSet};

use fastcdc::v2020::FastCDC;
use rusqlite::{Connection, OptionalExtension as _};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{
    StoreError, encoding,
    seal::{NAME_BYTES, Name, Sealer},
};

/// A value that is packed into this many bytes, or fewer, is one row.
const ONE_ROW_BYTES: usize = 2 << 10;
/// Least, usual and most bytes of a piece, before it is packed.
const PIECE_BYTES: (usize, usize, usize) = (128, 512, 4 << 10);
/// What is longer is not going to be one row, and is not packed to see.
const PACKED_WHOLE_BYTES: usize = 1 << 20;
/// Where a piece is sealed for.
const PIECES: &str = "pieces";

/// Sealed bytes that went through a store since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes of rows that were read.
    pub read_bytes: u64,
    /// Bytes of rows that were written, keys included.
    pub written_bytes: u64,
}

/// The sealed rows, inside one transaction.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    connection: &'a Connection,
    sealer: &'a Sealer,
    traffic: &'a Cell<Traffic>,
}

/// A row as it lies in the file.
struct Stored {
    value: Vec<u8>,
    levels: u32,
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        sealer: &'a Sealer,
        traffic: &'a Cell<Traffic>,
    ) -> Self {
        Self {
            connection,
            sealer,
            traffic,
        }
    }

    pub(super) fn connection(&self) -> &'a Connection {
        self.connection
    }

    /// A value.
    pub(super) fn get<T: DeserializeOwned>(
        &self,
        space: &'static str,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        self.get_within(space, key, usize::MAX)
    }

    /// A value whose bytes are at most `max`; what is larger is not read to its end.
    pub(super) fn get_within<T: DeserializeOwned>(
        &self,
        space: &'static str,
        key: &[u8],
        max: usize,
    ) -> Result<Option<T>, StoreError> {
        self.stored(space, key)?
            .map(|stored| self.open(space, key, &stored, max))
            .transpose()
    }

    /// Writes or replaces a value.
    pub(super) fn put<T: Serialize>(
        &self,
        space: &'static str,
        key: &[u8],
        value: &T,
    ) -> Result<(), StoreError> {
        let before = self.names(space, key)?;
        let owner = self.owner(space, key);
        let mut bytes = Zeroizing::new(postcard::to_allocvec(value).map_err(encoding)?);
        let (mut levels, mut names) = (0_u32, BTreeSet::new());
        let packed = loop {
            if bytes.len() <= PACKED_WHOLE_BYTES {
                let packed = pack(&bytes);
                if packed.len() <= ONE_ROW_BYTES {
                    break packed;
                }
            }
            bytes = self.cut(&owner, &bytes, &before, &mut names)?;
            levels += 1;
        };
        let sealed = self.sealer.seal(space, key, &packed)?;
        self.wrote(space.len() + key.len() + sealed.len());
        self.connection
            .prepare_cached(
                "INSERT INTO sealed (space, key, value, levels) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, levels = excluded.levels",
            )?
            .execute((space, key, sealed, levels))?;
        self.drop_pieces(&owner, before.difference(&names))
    }

    /// Removes a value, if it is there.
    pub(super) fn delete(&self, space: &'static str, key: &[u8]) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("DELETE FROM pieces WHERE owner = ?1")?
            .execute([self.owner(space, key)])?;
        self.connection
            .prepare_cached("DELETE FROM sealed WHERE space = ?1 AND key = ?2")?
            .execute((space, key))?;
        Ok(())
    }

    /// Keys with this prefix that sort after `after`, in order, at most `limit`, with their values.
    pub(super) fn list<T: DeserializeOwned>(
        &self,
        space: &'static str,
        prefix: &[u8],
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT key, value, levels FROM sealed WHERE space = ?1 AND key >= ?2 AND key > ?3 \
             AND substr(key, 1, ?4) = ?2 ORDER BY key LIMIT ?5",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let length = i64::try_from(prefix.len()).unwrap_or(i64::MAX);
        let mut rows = statement.query((space, prefix, after, length, limit))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let key: Vec<u8> = row.get(0)?;
            let stored = Stored {
                value: row.get(1)?,
                levels: row.get(2)?,
            };
            self.was_read(stored.value.len());
            let value = self.open(space, &key, &stored, usize::MAX)?;
            found.push((key, value));
        }
        Ok(found)
    }

    /// All keys of a space, in order.
    pub(super) fn keys(&self, space: &'static str) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT key FROM sealed WHERE space = ?1 ORDER BY key")?;
        let keys = statement.query_map([space], |row| row.get(0))?;
        Ok(keys.collect::<Result<_, _>>()?)
    }

    fn stored(&self, space: &str, key: &[u8]) -> Result<Option<Stored>, StoreError> {
        let stored = self
            .connection
            .prepare_cached("SELECT value, levels FROM sealed WHERE space = ?1 AND key = ?2")?
            .query_row((space, key), |row| {
                Ok(Stored {
                    value: row.get(0)?,
                    levels: row.get(1)?,
                })
            })
            .optional()?;
        if let Some(stored) = &stored {
            self.was_read(stored.value.len());
        }
        Ok(stored)
    }

    fn open<T: DeserializeOwned>(
        &self,
        space: &str,
        key: &[u8],
        stored: &Stored,
        max: usize,
    ) -> Result<T, StoreError> {
        let mut bytes = unpack(&self.sealer.open_sealed(space, key, &stored.value)?)?;
        if stored.levels > 0 {
            let owner = self.owner(space, key);
            for _ in 0..stored.levels {
                bytes = self.join(&owner, &bytes, max)?;
            }
        }
        postcard::from_bytes(&bytes).map_err(encoding)
    }

    /// Whose pieces they are: the value's place.
    fn owner(&self, space: &str, key: &[u8]) -> Name {
        self.sealer.name(&[space.as_bytes(), b"\0", key])
    }

    /// Cuts bytes into pieces, writes those that are not there, and gives the list of their names.
    fn cut(
        &self,
        owner: &Name,
        bytes: &[u8],
        before: &BTreeSet<Name>,
        names: &mut BTreeSet<Name>,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let (least, usual, most) = PIECE_BYTES;
        let mut list = Zeroizing::new(Vec::with_capacity(bytes.len() / usual * NAME_BYTES));
        for place in FastCDC::new(bytes, least, usual, most) {
            let piece = &bytes[place.offset..place.offset + place.length];
            let name = self.sealer.name(&[piece]);
            list.extend_from_slice(&name);
            if names.insert(name) && !before.contains(&name) {
                self.put_piece(owner, &name, piece)?;
            }
        }
        Ok(list)
    }

    fn put_piece(&self, owner: &Name, name: &Name, piece: &[u8]) -> Result<(), StoreError> {
        let place = [&owner[..], name].concat();
        let sealed = self.sealer.seal(PIECES, &place, &pack(piece))?;
        self.wrote(place.len() + sealed.len());
        self.connection
            .prepare_cached("INSERT INTO pieces (owner, name, value) VALUES (?1, ?2, ?3)")?
            .execute((owner, name, sealed))?;
        Ok(())
    }

    /// The bytes whose pieces a list names, at most `max`.
    fn join(
        &self,
        owner: &Name,
        list: &[u8],
        max: usize,
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT value FROM pieces WHERE owner = ?1 AND name = ?2")?;
        let mut bytes = Zeroizing::new(Vec::new());
        for name in named(list)? {
            let sealed: Option<Vec<u8>> = statement
                .query_row((owner, name), |row| row.get(0))
                .optional()?;
            let sealed = sealed.ok_or(StoreError::Sealed)?;
            self.was_read(sealed.len());
            let place = [&owner[..], name].concat();
            let packed = self.sealer.open_sealed(PIECES, &place, &sealed)?;
            bytes.extend_from_slice(&unpack(&packed)?);
            if bytes.len() > max {
                return Err(StoreError::TooLarge { max });
            }
        }
        Ok(bytes)
    }

    /// The names of all pieces that a value is kept in, lists among them.
    fn names(&self, space: &str, key: &[u8]) -> Result<BTreeSet<Name>, StoreError> {
        let mut names = BTreeSet::new();
        let levels: Option<u32> = self
            .connection
            .prepare_cached("SELECT levels FROM sealed WHERE space = ?1 AND key = ?2")?
            .query_row((space, key), |row| row.get(0))
            .optional()?;
        if levels.unwrap_or(0) == 0 {
            return Ok(names);
        }
        let Some(stored) = self.stored(space, key)? else {
            return Ok(names);
        };
        let owner = self.owner(space, key);
        let mut list = unpack(&self.sealer.open_sealed(space, key, &stored.value)?)?;
        for level in 1..=stored.levels {
            names.extend(named(&list)?);
            if level < stored.levels {
                list = self.join(&owner, &list, usize::MAX)?;
            }
        }
        Ok(names)
    }

    fn drop_pieces<'n>(
        &self,
        owner: &Name,
        names: impl IntoIterator<Item = &'n Name>,
    ) -> Result<(), StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("DELETE FROM pieces WHERE owner = ?1 AND name = ?2")?;
        for name in names {
            statement.execute((owner, name))?;
        }
        Ok(())
    }

    fn wrote(&self, bytes: usize) {
        let mut traffic = self.traffic.get();
        traffic.written_bytes += bytes as u64;
        self.traffic.set(traffic);
    }

    fn was_read(&self, bytes: usize) {
        let mut traffic = self.traffic.get();
        traffic.read_bytes += bytes as u64;
        self.traffic.set(traffic);
    }
}

fn named(list: &[u8]) -> Result<&[Name], StoreError> {
    match list.as_chunks() {
        (names, []) => Ok(names),
        _ => Err(StoreError::Sealed),
    }
}

fn pack(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(lz4_flex::compress_prepend_size(bytes))
}

fn unpack(packed: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    lz4_flex::decompress_size_prepended(packed)
        .map(Zeroizing::new)
        .map_err(encoding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    /// Bytes that do not compress and are the same each time.
    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        use sha2::{Digest as _, Sha256};
        let block = |n: u64| Sha256::digest([seed.to_be_bytes(), n.to_be_bytes()].concat());
        (0..).flat_map(block).take(bytes).collect()
    }

    fn put(store: &mut Store, value: &Vec<u8>) -> u64 {
        let before = store.traffic().written_bytes;
        store
            .step(|step| step.put("t", b"large", value))
            .unwrap_or_else(|error: StoreError| panic!("{error}"));
        store.traffic().written_bytes - before
    }

    fn get(store: &mut Store) -> Option<Vec<u8>> {
        store
            .step(|step| step.get("t", b"large"))
            .unwrap_or_else(|error: StoreError| panic!("{error}"))
    }

    fn pieces(store: &Store) -> u32 {
        store.rows_in("pieces")
    }

    #[test]
    fn a_large_value_is_written_once_and_a_change_costs_what_it_changes() {
        let mut store = Store::in_memory().unwrap();
        let mut value = noise(1, 2 << 20);
        let first = put(&mut store, &value);
        assert!((2 << 20..5 << 19).contains(&first), "{first}");
        assert_eq!(get(&mut store).as_ref(), Some(&value));
        // The same again.
        assert!(put(&mut store, &value) < 4 << 10);
        // A byte changes; then one comes in, and everything after it moves.
        value[1 << 20] ^= 1;
        let changed = put(&mut store, &value);
        assert!(changed < 24 << 10, "{changed}");
        value.insert(1 << 19, 7);
        let moved = put(&mut store, &value);
        assert!(moved < 24 << 10, "{moved}");
        assert_eq!(get(&mut store).as_ref(), Some(&value));
    }

    #[test]
    fn nothing_of_an_older_value_stays() {
        let mut store = Store::in_memory().unwrap();
        for seed in 0..5 {
            // One level, two levels, one level, none.
            let bytes = [100_000, 3 << 20, 200_000, 40, 70_000][seed];
            let value = noise(seed as u64, bytes);
            put(&mut store, &value);
            assert_eq!(get(&mut store), Some(value));
            let most = u32::try_from(bytes / PIECE_BYTES.0).unwrap();
            assert!(pieces(&store) <= most, "{} of {most}", pieces(&store));
        }
        store
            .step(|step| step.delete("t", b"large"))
            .unwrap_or_else(|error: StoreError| panic!("{error}"));
        assert_eq!((get(&mut store), pieces(&store)), (None, 0));
    }

    #[test]
    fn a_value_that_repeats_itself_shares_its_pieces() {
        let mut store = Store::in_memory().unwrap();
        let block = noise(1, 64 << 10);
        let value: Vec<u8> = (0..16).flat_map(|_| block.clone()).collect();
        let written = put(&mut store, &value);
        assert!(written < 256 << 10, "{written}");
        assert_eq!(get(&mut store), Some(value));
        // One of the shared pieces is still needed when others of its places are gone.
        let value = [block.clone(), noise(2, 64 << 10)].concat();
        put(&mut store, &value);
        assert_eq!(get(&mut store), Some(value));
    }

    #[test]
    fn a_piece_that_is_missing_is_damage() {
        let mut store = Store::in_memory().unwrap();
        put(&mut store, &noise(1, 100_000));
        store.damage("DELETE FROM pieces WHERE name = (SELECT max(name) FROM pieces)");
        let read = store.step(|step| step.get::<Vec<u8>>("t", b"large"));
        assert!(matches!(read, Err(StoreError::Sealed)));
    }
}
