//! The common reader: what is new in followed groups is read once for all streams of this node, and encoded once.
//!
//! Who may have what it shares? A follower has shown, by its own reading, that it is a member and has everything up to its place. Memberships end by
//! Commits only, so after each Commit the devices whose membership ended are read and named in the pieces; they read for themselves. Revocations are
//! looked for after the entries were read, and before these are shared: whatever was accepted after a revocation is not shared before the device's
//! streams know of it.

use std::sync::Arc;

use bytes::BytesMut;
use chancery_proto::delivery::v1::frame;
use futures_util::future::try_join;
use service_kit::{
    db::{DbError, GenericClient, Object},
    lifecycle::Shutdown,
};

use crate::{
    error::Error,
    hub::{Piece, Position, Room},
    node::Node,
    ordering::group::{DeviceKey, Stage},
    reading::{
        log::{self, FRAME_BYTES, INLINE_PAYLOAD_BYTES, Next},
        stream_body,
    },
    store::{self, groups::Place, log::Entry},
    wire,
};

/// Groups in one round.
const ROUND_ROOMS: usize = 64;
/// Entries of each.
const ROUND_ENTRIES: u32 = 64;

/// Reads for followers until shutdown.
pub async fn run(node: Node, shutdown: Shutdown) {
    let soft = shutdown.soft();
    let mut reader = Reader {
        revocations: Revocations::default(),
        node,
    };
    loop {
        let rooms = tokio::select! {
            rooms = reader.node.hub.to_read(ROUND_ROOMS) => rooms,
            () = soft.cancelled() => return,
        };
        reader.round(&rooms).await;
    }
}

/// Which revocations this node's streams know of.
#[derive(Debug, Default)]
pub struct Revocations {
    /// Where the status feeds were when the devices of all streams were looked at.
    feeds: Option<Arc<str>>,
}

impl Revocations {
    /// Looks where the status feeds are, and tells the streams of every device that was revoked or cut off meanwhile.
    ///
    /// # Errors
    /// The database; then nothing is known.
    pub async fn look<C: GenericClient>(&mut self, node: &Node, client: &C) -> Result<(), DbError> {
        // A revocation and its place in the feed are one transaction. A stream that begins after this reads for itself first.
        let feeds = store::devices::feeds(client).await?;
        if self.feeds.as_ref() == Some(&feeds) {
            return Ok(());
        }
        let devices = node.hub.devices();
        let statement = store::devices::Standings::prepare(client).await?;
        let (standings, _) = statement.run(client, &devices).await?;
        for (place, standing) in standings {
            if let Some((device, _)) = devices.get(place) {
                if standing.revoked {
                    node.hub.revoke(*device);
                }
                if standing.suspended {
                    node.hub.suspend(*device);
                }
            }
        }
        self.feeds = Some(feeds);
        Ok(())
    }
}

struct Reader {
    node: Node,
    revocations: Revocations,
}

/// A room in a round: what was read for it.
struct Read<'r> {
    room: &'r Arc<Room>,
    from: Position,
    place: Option<Place>,
    entries: Vec<Entry>,
    leavers: Vec<DeviceKey>,
}

impl Reader {
    async fn round(&mut self, rooms: &[(Arc<Room>, Option<Position>)]) {
        let mut reads = Vec::new();
        for (room, from) in rooms {
            match from {
                Some(from) => reads.push(Read {
                    room,
                    from: *from,
                    place: None,
                    entries: Vec::new(),
                    leavers: Vec::new(),
                }),
                // Nobody is at its head: whoever follows is on the way there.
                None => {
                    room.scatter();
                    self.node.hub.was_read(room, false);
                }
            }
        }
        if reads.is_empty() {
            return;
        }
        let known = self.read(&mut reads).await;
        for read in reads {
            let room = read.room.clone();
            let shared = match &known {
                Ok(client) => self.share(client, read).await.map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match shared {
                Ok(more) => self.node.hub.was_read(&room, more),
                Err(error) => {
                    tracing::warn!(%error, "cannot read for followers");
                    self.node.hub.was_missed(&room);
                }
            }
        }
    }

    /// Reads all rooms, and then looks for revocations; the connection that this took.
    async fn read(&mut self, reads: &mut [Read<'_>]) -> Result<Object, DbError> {
        let client = self.node.db.client().await?;
        read_rooms(&client, reads).await?;
        self.revocations.look(&self.node, &client).await?;
        Ok(client)
    }

    /// Shares what was read of one room; true if there is more.
    async fn share(&self, client: &Object, mut read: Read<'_>) -> Result<bool, Error> {
        let Some(place) = read.place.take() else {
            read.room.scatter();
            return Ok(false);
        };
        let group: &[u8] = read.room.id();
        let head = &place.head;
        let mut rows: Vec<Entry> = std::mem::take(&mut read.entries);
        rows.retain(|row| row.seq <= head.seq);
        let mut next_seq = read.from.seq + 1;
        let shared = rows.iter().all(|row| {
            let fits = row.seq == next_seq && !row.pruned;
            next_seq += 1;
            fits
        });
        if head.stage != Stage::Open || !shared {
            read.room.scatter();
            return Ok(false);
        }
        let last = rows.last().map_or(read.from.seq, |row| row.seq);
        let position = go_on(read.from, last, place.roster_seq);
        let leavers: Arc<[DeviceKey]> = read.leavers.as_slice().into();
        let mut pieces = Vec::new();
        let mut after = read.from.seq;
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let next =
                log::page_of(&self.node, client, group, &mut rows, FRAME_BYTES, head.seq).await?;
            let Next::Entries(entries) = next else {
                return Err(Error::Corrupt("a pruned entry at the head of a log"));
            };
            let until = entries.entries.last().map_or(after, |entry| entry.seq);
            let mut bytes = BytesMut::new();
            stream_body::put(&mut bytes, frame::Frame::Entries(entries));
            if until == head.seq {
                let state = wire::state(&self.node, group, head);
                stream_body::put(&mut bytes, frame::Frame::State(state));
            }
            pieces.push(Piece {
                after,
                last: until,
                bytes: bytes.freeze(),
                leavers: leavers.clone(),
            });
            after = until;
        }
        read.room.share(pieces, position);
        Ok(last < head.seq)
    }
}

/// Entries of all rooms, where their heads are, and who left.
async fn read_rooms(client: &Object, reads: &mut [Read<'_>]) -> Result<(), DbError> {
    let afters: Vec<(&[u8], u64)> = reads
        .iter()
        .map(|read| (&**read.room.id(), read.from.seq))
        .collect();
    let ids: Vec<&[u8]> = afters.iter().map(|(id, _)| *id).collect();
    // Under way together: whichever is read first, entries beyond the head that was read are left for the next round.
    let (entries, places) = try_join(
        store::log::read_many(client, &afters, ROUND_ENTRIES, INLINE_PAYLOAD_BYTES),
        store::groups::places(client, &ids),
    )
    .await?;
    for (place, entry) in entries {
        if let Some(read) = reads.get_mut(place) {
            read.entries.push(entry);
        }
    }
    for (place, head) in places {
        if let Some(read) = reads.get_mut(place) {
            read.place = Some(head);
        }
    }
    let committed: Vec<usize> = (0..reads.len())
        .filter(|index| reads[*index].roster_moved())
        .collect();
    if committed.is_empty() {
        return Ok(());
    }
    let asked: Vec<(&[u8], u64)> = committed
        .iter()
        .map(|index| &reads[*index])
        .map(|read| (&**read.room.id(), read.from.roster_seq))
        .collect();
    for (place, device) in store::roster::left_after(client, &asked).await? {
        if let Some(read) = committed.get(place).and_then(|i| reads.get_mut(*i)) {
            read.leavers.push(device);
        }
    }
    Ok(())
}

impl Read<'_> {
    fn roster_moved(&self) -> bool {
        let now = self.place.as_ref().map(|place| place.roster_seq);
        now.is_some_and(|seq| seq != self.from.roster_seq)
    }
}

/// Where the next round goes on, when everything up to `last` is shared. A Commit beyond it must be found again then: who leaves by it is named with it.
fn go_on(from: Position, last: u64, roster_seq: u64) -> Position {
    Position {
        seq: last,
        roster_seq: if roster_seq <= last {
            roster_seq
        } else {
            from.roster_seq
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_not_shared_yet_is_looked_at_again() {
        let at = |seq, roster_seq| Position { seq, roster_seq };
        assert_eq!(go_on(at(5, 2), 7, 7), at(7, 7));
        assert_eq!(go_on(at(5, 2), 7, 2), at(7, 2));
        // The heads were read after the entries, or there are more than one round takes.
        assert_eq!(go_on(at(5, 2), 6, 7), at(6, 2));
        assert_eq!(go_on(at(5, 2), 5, 6), at(5, 2));
    }
}
