//! The stream: catch up, then follow. Nothing is buffered ahead of a slow reader, and nothing is skipped for it.
//!
//! Whoever is at the head of a group sends what the common reader shares ([`crate::reading::shared_reader`]); whoever is behind, or whose membership changed, reads for
//! itself, many groups at once, and no more streams at a time than the node allows.

mod catch_up;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use chancery_proto::common::v1::Reason;
use chancery_proto::delivery::v1::{
    CaughtUp, Cursor, Ended, EndedWhy, Heartbeat, State, SubscribeRequest, frame,
};
use service_kit::db::DbError;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::Status;

use crate::{
    access::caller::{self, Caller},
    error::Error,
    hub::{Bell, GroupId, Next, Position, Room, Woken},
    node::Node,
    reading::{
        log,
        stream_body::{self, Outlet},
        welcomes,
    },
    store, wire,
};
use catch_up::{Read, View, end_of};

/// Groups that are read at once when catching up.
const PART_GROUPS: usize = 64;
/// Frames are handed over when so much is together, or nothing more comes.
const OUT_BYTES: usize = 64 * 1024;

/// Where this stream stands in one group.
#[derive(Debug)]
struct Reader {
    room: Arc<Room>,
    after: u64,
    /// What the client says the chain is at `after`; gone once it was checked.
    chain: Option<[u8; 32]>,
    /// `Ended` was sent; a later join goes on from there.
    ended: bool,
    /// It could not be read: this stream sends nothing more of it.
    failed: bool,
    /// It is a member and has read everything: what is shared of the group is for it.
    follows: bool,
    /// It waits to be read.
    due: bool,
}

struct Stream {
    node: Node,
    caller: Caller,
    all_groups: bool,
    inbox: bool,
    bell: Arc<Bell>,
    readers: BTreeMap<GroupId, Reader>,
    /// Groups with something to read, in turn.
    due: VecDeque<GroupId>,
    sent_welcomes: HashSet<(Vec<u8>, u64)>,
    outlet: Outlet,
    /// Frames that were not handed over yet.
    out: BytesMut,
}

/// Begins a stream of a caller whose token is good. Its work is done by whoever polls the body.
///
/// # Errors
/// Malformed cursors, or more than the limit.
pub fn subscribe(
    node: &Node,
    caller: Caller,
    request: &SubscribeRequest,
) -> Result<stream_body::Body, Error> {
    node.within(
        "cursors_items",
        node.config.limits.cursors_items,
        request.cursors.len(),
    )?;
    let cursors = request.cursors.iter().map(|cursor| place_of(node, cursor));
    let cursors: Vec<_> = cursors.collect::<Result<_, Error>>()?;
    let (node, all_groups, inbox) = (node.clone(), request.all_groups, request.device_inbox);
    Ok(stream_body::Body::of(move |outlet| {
        let bell = Arc::new(Bell::of(caller.key));
        // Bells first, reads after: what comes in between rings.
        node.hub.follow_device(caller.key, caller.user, &bell);
        let stream = Stream {
            node,
            caller,
            all_groups,
            inbox,
            bell,
            readers: BTreeMap::new(),
            due: VecDeque::new(),
            sent_welcomes: HashSet::new(),
            outlet,
            out: BytesMut::new(),
        };
        stream.run(cursors)
    }))
}

type Start = (Vec<u8>, u64, Option<[u8; 32]>);

fn place_of(node: &Node, cursor: &Cursor) -> Result<Start, Error> {
    let group = wire::group_id(node, cursor.group.as_ref())?;
    Ok((group, cursor.seq, wire::chain(&cursor.chain)?))
}

fn revoked() -> Error {
    Error::refused(Reason::DeviceRevoked, "this device was revoked")
}

impl Stream {
    fn add(&mut self, group: &[u8], after: u64, chain: Option<[u8; 32]>) {
        let room = self.node.hub.follow_group(group, &self.bell);
        let id = room.id().clone();
        let reader = Reader {
            room,
            after,
            chain,
            ended: false,
            failed: false,
            follows: false,
            due: false,
        };
        self.readers.insert(id.clone(), reader);
        self.look_at(&id);
    }

    /// A group is to be read.
    fn look_at(&mut self, group: &GroupId) {
        if let Some(reader) = self.readers.get_mut(group)
            && !reader.failed
            && !std::mem::replace(&mut reader.due, true)
        {
            reader.follows = false;
            self.due.push_back(group.clone());
        }
    }

    async fn run(mut self, cursors: Vec<Start>) -> Status {
        let end = match self.follow(cursors).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        // What came before the end is still the reader's.
        self.flush().await;
        crate::error::status(end)
    }

    async fn follow(&mut self, cursors: Vec<Start>) -> Result<Infallible, Error> {
        // What is needed only while it reads does not stay in every stream that waits or follows.
        Box::pin(self.begin(cursors)).await?;
        let left = self
            .node
            .gate
            .time_left(&self.caller, &self.node.db)
            .await?;
        let every = Duration::from_secs(self.node.config.heartbeat_seconds);
        let token_end = Instant::now() + left;
        let mut next_beat = Instant::now() + every;
        // One timer for both: thousands of streams have one.
        let timer = tokio::time::sleep_until(token_end.min(next_beat));
        tokio::pin!(timer);
        loop {
            let bell = self.bell.clone();
            tokio::select! {
                biased;
                woken = bell.wait() => self.answer(woken).await?,
                () = &mut timer => {
                    if Instant::now() >= token_end {
                        return Err(Error::refused(Reason::TokenExpired, "the token expired; subscribe again at the same cursor"));
                    }
                    self.heartbeat().await?;
                    next_beat = Instant::now() + every;
                    timer.as_mut().reset(token_end.min(next_beat));
                }
            };
            if !self.due.is_empty() {
                Box::pin(self.drain()).await?;
            }
            self.flush().await;
        }
    }

    /// Until it has caught up.
    async fn begin(&mut self, cursors: Vec<Start>) -> Result<(), Error> {
        // The answer's head is out already: thousands that come back must not hold a request each while they wait for their turn, nor keep those waiting
        // who are there by making all their readers at once.
        let turn = self.turn().await;
        caller::look_at_standing(&self.caller, &self.node.db).await?;
        for (group, after, chain) in cursors {
            self.add(&group, after, chain);
        }
        drop(turn);
        self.look_at_device().await?;
        self.drain().await?;
        self.send(frame::Frame::CaughtUp(CaughtUp {})).await;
        self.flush().await;
        Ok(())
    }

    /// Who reads what it missed takes turns with the others, so that live streams and writers find a connection.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let turns = self.node.catching_up.clone();
        // It is never closed.
        turns.acquire_owned().await.ok()
    }

    /// What a bell said.
    async fn answer(&mut self, woken: Woken) -> Result<(), Error> {
        if self.bell.revoked() {
            return Err(revoked());
        }
        if self.bell.closing() {
            return Err(Error::refused(
                Reason::ShuttingDown,
                "the node is shutting down; subscribe again",
            ));
        }
        if woken.suspended {
            return Err(caller::suspended());
        }
        for request in woken.requests {
            self.send(frame::Frame::Requested(request)).await;
        }
        if woken.device {
            self.look_at_device().await?;
        }
        for group in woken.groups {
            self.take_shared(&group).await?;
        }
        Ok(())
    }

    /// Sends what is shared of a group, as far as it is for this stream; the rest it reads for itself.
    async fn take_shared(&mut self, group: &GroupId) -> Result<(), Error> {
        let me = self.caller.key;
        while let Some(reader) = self.readers.get_mut(group).filter(|r| r.follows) {
            match reader.room.next(reader.after) {
                Next::Nothing => return Ok(()),
                Next::Piece(piece) if !piece.leavers.contains(&me) => {
                    // After the piece was taken: whoever shared it told of revocations first.
                    if self.bell.revoked() {
                        return Err(revoked());
                    }
                    reader.after = piece.last;
                    self.flush().await;
                    self.outlet.put(piece.bytes).await;
                }
                Next::Piece(_) | Next::Look => break,
            }
        }
        self.look_at(group);
        Ok(())
    }

    /// New groups of the device, and its unread Welcomes: these go out before any entry of the interval that they open.
    async fn look_at_device(&mut self) -> Result<(), Error> {
        if self.all_groups {
            let turn = self.turn().await;
            let client = self.node.db.client().await?;
            let groups = store::roster::groups_of(&client, self.caller.key)
                .await
                .map_err(DbError::from)?;
            drop((client, turn));
            for group in groups {
                match self.readers.get(group.as_slice()) {
                    None => self.add(&group, 0, None),
                    Some(reader) if !reader.follows => {
                        let id = reader.room.id().clone();
                        self.look_at(&id);
                    }
                    Some(_) => {}
                }
            }
        }
        self.look_at_inbox().await
    }

    async fn look_at_inbox(&mut self) -> Result<(), Error> {
        if !self.inbox {
            return Ok(());
        }
        let turn = self.turn().await;
        let welcomes = welcomes::unread(&self.node, &self.caller).await?;
        drop(turn);
        for welcome in welcomes {
            let id = welcome
                .group
                .as_ref()
                .map(|g| (g.id.to_vec(), welcome.seq))
                .unwrap_or_default();
            if self.sent_welcomes.insert(id) {
                self.send(frame::Frame::Welcome(welcome)).await;
            }
        }
        Ok(())
    }

    /// One frame for each group in turn, live entries in between, until nothing is due.
    async fn drain(&mut self) -> Result<(), Error> {
        while !self.due.is_empty() {
            let count = self.due.len().min(PART_GROUPS);
            let part: Vec<GroupId> = self.due.drain(..count).collect();
            let mut comes_back = false;
            for group in &part {
                if let Some(reader) = self.readers.get_mut(group) {
                    reader.due = false;
                    comes_back |= reader.ended;
                }
            }
            if comes_back {
                self.look_at_inbox().await?;
            }
            let part = self.read(part).await?;
            for group in part.unknown {
                self.unknown(&group).await;
            }
            for group in part.failed {
                self.failed(&group).await;
            }
            for read in part.reads {
                self.step(read).await?;
            }
            self.flush().await;
            let woken = self.bell.take();
            self.answer(woken).await?;
        }
        Ok(())
    }

    /// A group of which the device may see nothing: its subscription ends, and no other one.
    async fn unknown(&mut self, group: &GroupId) {
        if self.readers.remove(group).is_some() {
            let ended = Ended {
                group: Some(wire::group_ref(&self.node, group)),
                at_seq: 0,
                why: EndedWhy::Unknown.into(),
            };
            self.send(frame::Frame::Ended(ended)).await;
        }
    }

    /// A group that this node cannot read: it ends on this stream, and no other one does.
    async fn failed(&mut self, group: &GroupId) {
        if let Some(reader) = self.readers.get_mut(group) {
            reader.failed = true;
            let ended = Ended {
                group: Some(wire::group_ref(&self.node, group)),
                at_seq: reader.after,
                why: EndedWhy::Failed.into(),
            };
            self.send(frame::Frame::Ended(ended)).await;
        }
    }

    /// Sends the next frame of one group; it is due again if there is more.
    async fn step(&mut self, read: Read) -> Result<(), Error> {
        let Read {
            group, view, next, ..
        } = read;
        let head_seq = view.place.head.seq;
        let after = next.as_ref().and_then(log::Next::last);
        if let Some(next) = next {
            self.send(next.into()).await;
        }
        let Some(reader) = self.readers.get_mut(&group) else {
            return Ok(());
        };
        reader.chain = None;
        if let Some(after) = after {
            reader.after = after;
            reader.ended = false;
        }
        if log::next_span(&view.intervals, reader.after, head_seq).is_some() {
            self.look_at(&group);
            return Ok(());
        }
        self.at_head(&group, &view).await;
        Ok(())
    }

    /// At the head: state for members, the end for those who were removed.
    async fn at_head(&mut self, group: &GroupId, view: &View) {
        let head = &view.place.head;
        let end = end_of(view);
        let Some(reader) = self.readers.get_mut(group) else {
            return;
        };
        match end {
            // Removed after the head was read: its removing Commit comes first.
            Some((at_seq, _)) if at_seq > head.seq => self.look_at(group),
            Some(_) if std::mem::replace(&mut reader.ended, true) => {}
            Some((at_seq, why)) => {
                let ended = Ended {
                    group: Some(wire::group_ref(&self.node, group)),
                    at_seq,
                    why: why.into(),
                };
                self.send(frame::Frame::Ended(ended)).await;
            }
            None => {
                reader.follows = true;
                let position = Position {
                    seq: head.seq,
                    roster_seq: view.place.roster_seq,
                };
                self.node.hub.begin(&reader.room, position);
                let state = wire::state(&self.node, group, head);
                self.send(frame::Frame::State(state)).await;
            }
        }
    }

    /// Heads that moved and did not come yet, as the node's poll saw them: a stream whose live half died is noticed.
    async fn heartbeat(&mut self) -> Result<(), Error> {
        let behind: Vec<(GroupId, u64)> = self
            .readers
            .iter()
            .map(|(group, reader)| (group, reader, reader.room.head_seq()))
            .filter(|(_, reader, head_seq)| reader.follows && reader.after < *head_seq)
            .map(|(group, _, head_seq)| (group.clone(), head_seq))
            .collect();
        let mut moved = Vec::new();
        for (group, head_seq) in behind {
            moved.push(State {
                group: Some(wire::group_ref(&self.node, &group)),
                head_seq,
                ..State::default()
            });
            self.look_at(&group);
        }
        let now = self.node.gate.clock.now(&self.node.db).await?;
        self.send(frame::Frame::Heartbeat(Heartbeat {
            server_time_micros: now,
            heads: moved,
        }))
        .await;
        Ok(())
    }

    async fn send(&mut self, frame: frame::Frame) {
        stream_body::put(&mut self.out, frame);
        if self.out.len() >= OUT_BYTES {
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        if !self.out.is_empty() {
            let bytes = std::mem::take(&mut self.out);
            self.outlet.put(bytes.freeze()).await;
        }
    }
}
