//! Where a status feed was read to, and whether what comes next goes on from there. Pure: no clock, no database.
//!
//! A past is named by its last item: a number and a hash. The history id tells only that the database was restored. It comes from heartbeats: an item
//! keeps the id under which it was signed, also in a database that was restored since.

use chancery_proto::{
    auth::v1::{DeviceStatus, StatusHeartbeat},
    mutants::{self, Mutant},
    signed,
};

use crate::store::status_feeds::Cursor;

/// Why something does not go on from a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Departure {
    /// Items between were not delivered; they may be at the next try.
    #[error("item {due} is due, and {came} came")]
    Hole {
        /// The next item.
        due: u64,
        /// What came, or what a heartbeat calls the last.
        came: u64,
    },
    /// The feed ends before the cursor.
    #[error("the feed ends at {ends}, and was applied up to {applied}")]
    Shorter {
        /// Its last item.
        ends: u64,
        /// The cursor.
        applied: u64,
    },
    /// Item `seq` is another one than the one that was applied.
    #[error("item {seq} is another one than the one that was applied")]
    OtherItem {
        /// Where they differ.
        seq: u64,
    },
    /// The database behind the feed was restored.
    #[error("the feed has another history")]
    OtherHistory,
}

impl Departure {
    /// Whether the feed has another past than the one that was applied, so that all of it must be read.
    pub fn is_other_past(self) -> bool {
        !matches!(self, Self::Hole { .. })
    }
}

impl Cursor {
    /// The cursor behind an item. `bytes` is the item as it was signed.
    ///
    /// # Errors
    /// [`Departure`] where the item does not follow the last one.
    pub fn behind(&self, status: &DeviceStatus, bytes: &[u8]) -> Result<Self, Departure> {
        let (due, came) = (self.seq + 1, status.seq);
        if came != due {
            return Err(Departure::Hole { due, came });
        }
        if !self.is_last(&status.previous_sha256) {
            return Err(Departure::OtherItem { seq: self.seq });
        }
        let history_id = if mutants::is_on(Mutant::FeedHistoryOfItems) {
            if !self.history_id.is_empty() && self.history_id != status.history_id {
                return Err(Departure::OtherHistory);
            }
            status.history_id.to_vec()
        } else {
            self.history_id.clone()
        };
        Ok(Self {
            history_id,
            seq: came,
            item_sha256: Some(signed::status_sha256(bytes)),
        })
    }

    /// The cursor at a heartbeat: the same, with the feed's history.
    ///
    /// # Errors
    /// [`Departure`] where the last item is not the one at the cursor, or the history is another one.
    pub fn at(&self, heartbeat: &StatusHeartbeat) -> Result<Self, Departure> {
        let (applied, ends) = (self.seq, heartbeat.seq);
        if ends > applied {
            return Err(Departure::Hole {
                due: applied + 1,
                came: ends,
            });
        }
        if ends < applied {
            return Err(Departure::Shorter { ends, applied });
        }
        if !self.is_last(&heartbeat.item_sha256) {
            return Err(Departure::OtherItem { seq: applied });
        }
        if !self.history_id.is_empty() && self.history_id != heartbeat.history_id {
            return Err(Departure::OtherHistory);
        }
        Ok(Self {
            history_id: heartbeat.history_id.to_vec(),
            ..self.clone()
        })
    }

    /// Whether this may be the hash of the last item. Services that do not chain their items name none.
    fn is_last(&self, named: &[u8]) -> bool {
        let last = self.item_sha256.as_ref().map_or(&[][..], |hash| hash);
        named.is_empty() || named == last || mutants::is_on(Mutant::FeedPastUncompared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cursor; number, named predecessor and history of the item; what comes of it.
    type Case<'c> = (Cursor, u64, &'c [u8], &'c [u8], Option<Departure>);
    use Departure::{Hole, OtherHistory, OtherItem, Shorter};

    fn cursor(seq: u64, item: u8, history: &[u8]) -> Cursor {
        Cursor {
            history_id: history.to_vec(),
            seq,
            item_sha256: (seq > 0).then_some([item; 32]),
        }
    }

    #[test]
    fn an_item_follows_the_one_that_it_names() {
        // Cursor; number, named predecessor and history of the item; what comes of it.
        let cases: [Case<'_>; 9] = [
            (cursor(0, 0, b""), 1, b"", b"old", None),
            (cursor(2, 7, b"new"), 3, &[7; 32], b"new", None),
            // Signed before the restore, read after it.
            (cursor(2, 7, b"new"), 3, &[7; 32], b"old", None),
            (cursor(2, 7, b""), 3, &[7; 32], b"old", None),
            // A service that does not chain.
            (cursor(2, 7, b"new"), 3, b"", b"new", None),
            (
                cursor(2, 7, b"new"),
                3,
                &[8; 32],
                b"new",
                Some(OtherItem { seq: 2 }),
            ),
            (
                cursor(0, 0, b"new"),
                1,
                &[8; 32],
                b"new",
                Some(OtherItem { seq: 0 }),
            ),
            (
                cursor(2, 7, b"new"),
                4,
                &[7; 32],
                b"new",
                Some(Hole { due: 3, came: 4 }),
            ),
            (
                cursor(2, 7, b"new"),
                2,
                &[7; 32],
                b"new",
                Some(Hole { due: 3, came: 2 }),
            ),
        ];
        for (place, (cursor, seq, previous, history, departure)) in cases.into_iter().enumerate() {
            let status = DeviceStatus {
                seq,
                previous_sha256: previous.to_vec().into(),
                history_id: history.to_vec().into(),
                ..DeviceStatus::default()
            };
            let next = cursor.behind(&status, b"bytes");
            let expected = departure.map_or_else(
                || {
                    Ok(Cursor {
                        seq,
                        item_sha256: Some(signed::status_sha256(b"bytes")),
                        ..cursor.clone()
                    })
                },
                Err,
            );
            assert_eq!(next, expected, "case {place}");
        }
    }

    #[test]
    fn a_heartbeat_names_the_item_at_the_cursor() {
        let cases: [Case<'_>; 10] = [
            (cursor(0, 0, b""), 0, b"", b"new", None),
            (cursor(2, 7, b""), 2, &[7; 32], b"new", None),
            (cursor(2, 7, b"new"), 2, &[7; 32], b"new", None),
            (cursor(2, 7, b"new"), 2, b"", b"new", None),
            (
                cursor(2, 7, b"new"),
                2,
                &[8; 32],
                b"new",
                Some(OtherItem { seq: 2 }),
            ),
            (
                cursor(2, 7, b"new"),
                1,
                &[7; 32],
                b"new",
                Some(Shorter {
                    ends: 1,
                    applied: 2,
                }),
            ),
            (
                cursor(2, 7, b"new"),
                0,
                b"",
                b"new",
                Some(Shorter {
                    ends: 0,
                    applied: 2,
                }),
            ),
            (
                cursor(2, 7, b"new"),
                3,
                &[7; 32],
                b"new",
                Some(Hole { due: 3, came: 3 }),
            ),
            (
                cursor(2, 7, b"old"),
                2,
                &[7; 32],
                b"new",
                Some(OtherHistory),
            ),
            (cursor(0, 0, b"old"), 0, b"", b"new", Some(OtherHistory)),
        ];
        for (place, (cursor, seq, last, history, departure)) in cases.into_iter().enumerate() {
            let heartbeat = StatusHeartbeat {
                seq,
                item_sha256: last.to_vec().into(),
                history_id: history.to_vec().into(),
                time_micros: 0,
            };
            let expected = departure.map_or_else(
                || {
                    Ok(Cursor {
                        history_id: history.to_vec(),
                        ..cursor.clone()
                    })
                },
                Err,
            );
            assert_eq!(cursor.at(&heartbeat), expected, "case {place}");
            let read_all = departure.is_some_and(Departure::is_other_past);
            assert_eq!(read_all, !matches!(departure, None | Some(Hole { .. })));
        }
    }
}
