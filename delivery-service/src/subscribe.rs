//! The stream: catch up, then follow. Nothing is buffered ahead of a slow reader, and nothing is skipped for it.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use chancery_proto::common::v1::Reason;
use chancery_proto::delivery::v1::{
    CaughtUp, Cursor, Ended, EndedWhy, Frame, Heartbeat, State, SubscribeRequest, frame,
};
use service_kit::{db::DbError, lifecycle::Shutdown};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    asking,
    caller::{self, Caller},
    error::Error,
    group::Stage,
    hub::Bell,
    inbox,
    node::Node,
    read::{self, FRAME_BYTES, Next},
    store::{self, groups::Pulse, roster::Interval},
};

type Sink = mpsc::Sender<Result<Frame, Status>>;

/// Where this stream stands in one group.
#[derive(Debug, Clone, Default)]
struct Reader {
    after: u64,
    /// What the client says the chain is at `after`; gone once it was checked.
    chain: Option<[u8; 32]>,
    /// `Ended` was sent; a later join goes on from there.
    ended: bool,
}

/// Why a group ended for a device, if it did, and with which entry.
fn end_of(view: &View) -> Option<(u64, EndedWhy)> {
    let last = view.intervals.last()?;
    match (last.removed_seq, view.head.stage) {
        (Some(at), _) if last.voided => Some((at, EndedWhy::Voided)),
        (Some(at), _) => Some((at, EndedWhy::Removed)),
        (None, Stage::Open) => None,
        (None, Stage::Replaced) => Some((view.head.seq, EndedWhy::Replaced)),
        (None, Stage::Empty) => Some((view.head.seq, EndedWhy::Left)),
        (None, Stage::Deleted) => Some((view.head.seq, EndedWhy::Deleted)),
    }
}

struct Stream {
    node: Node,
    caller: Caller,
    all_groups: bool,
    inbox: bool,
    bell: Arc<Bell>,
    readers: BTreeMap<Vec<u8>, Reader>,
    /// Groups with something to read, in turn.
    due: VecDeque<Vec<u8>>,
    sent_welcomes: HashSet<(Vec<u8>, u64)>,
    sink: Sink,
}

/// Why a stream stops.
enum End {
    /// The reader went away.
    Gone,
    /// It is told why.
    Told(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

impl From<tokio_postgres::Error> for End {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Told(Error::Db(DbError::from(error)))
    }
}

impl From<DbError> for End {
    fn from(error: DbError) -> Self {
        Self::Told(Error::Db(error))
    }
}

/// Starts a stream; its frames come out of the returned channel.
///
/// # Errors
/// Malformed cursors, or more than the limit.
pub fn subscribe(
    node: &Node,
    caller: Caller,
    request: &SubscribeRequest,
    shutdown: Shutdown,
) -> Result<mpsc::Receiver<Result<Frame, Status>>, Error> {
    node.within(
        "cursors_items",
        node.config.limits.cursors_items,
        request.cursors.len(),
    )?;
    let mut readers = BTreeMap::new();
    for cursor in &request.cursors {
        let (group, reader) = reader_of(node, cursor)?;
        readers.insert(group, reader);
    }
    // One frame may wait while the next is read: that is all that is held for a slow reader.
    let (sink, frames) = mpsc::channel(1);
    let stream = Stream {
        node: node.clone(),
        all_groups: request.all_groups,
        inbox: request.device_inbox,
        bell: Arc::new(Bell::of(caller.key)),
        readers,
        due: VecDeque::new(),
        sent_welcomes: HashSet::new(),
        sink,
        caller,
    };
    tokio::spawn(stream.run(shutdown));
    Ok(frames)
}

fn reader_of(node: &Node, cursor: &Cursor) -> Result<(Vec<u8>, Reader), Error> {
    let group = read::group_id(node, cursor.group.as_ref())?;
    let chain = read::chain(&cursor.chain)?;
    Ok((
        group,
        Reader {
            after: cursor.seq,
            chain,
            ended: false,
        },
    ))
}

impl Stream {
    async fn run(mut self, shutdown: Shutdown) {
        let sink = self.sink.clone();
        let soft = shutdown.soft();
        let end = tokio::select! {
            end = self.follow() => end,
            () = soft.cancelled() => End::Told(Error::refused(Reason::ShuttingDown, "the node is shutting down; subscribe again")),
            () = sink.closed() => End::Gone,
        };
        if let End::Told(error) = end {
            let status = crate::error::status(error);
            // A slow reader still gets the reason; if it is gone, nobody needs it.
            let _gone = sink.send(Err(status)).await;
        }
    }

    async fn follow(&mut self) -> End {
        match self.try_follow().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_follow(&mut self) -> Result<std::convert::Infallible, End> {
        // Bells first, reads after: what comes in between rings.
        let who = &self.caller;
        self.node.hub.follow_device(who.key, who.user, &self.bell);
        for group in self.readers.keys() {
            self.node.hub.follow_group(group, &self.bell);
        }
        self.due.extend(self.readers.keys().cloned());
        self.look_at_device().await?;
        self.drain().await?;
        self.send(frame::Frame::CaughtUp(CaughtUp {})).await?;
        let heartbeat = Duration::from_secs(self.node.config.heartbeat_seconds);
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + heartbeat, heartbeat);
        let left = self
            .node
            .gate
            .time_left(&self.caller, &self.node.db)
            .await?;
        let token_end = tokio::time::sleep(left);
        tokio::pin!(token_end);
        loop {
            let bell = self.bell.clone();
            let woken = tokio::select! {
                woken = bell.wait() => woken,
                _ = beat.tick() => {
                    self.heartbeat().await?;
                    continue;
                }
                () = &mut token_end => {
                    return Err(Error::refused(Reason::TokenExpired, "the token expired; subscribe again at the same cursor").into());
                }
            };
            if woken.revoked {
                return Err(
                    Error::refused(Reason::DeviceRevoked, "this device was revoked").into(),
                );
            }
            if woken.suspended {
                return Err(caller::suspended().into());
            }
            for request in woken.requests {
                self.send(frame::Frame::Requested(request)).await?;
            }
            if woken.device {
                self.look_at_device().await?;
            }
            for group in woken.groups {
                if self.readers.contains_key(&group) && !self.due.contains(&group) {
                    self.due.push_back(group);
                }
            }
            self.drain().await?;
        }
    }

    /// New groups of the device, and its unread Welcomes: these go out before any entry of the interval that they open.
    async fn look_at_device(&mut self) -> Result<(), End> {
        if self.all_groups {
            let client = self.node.db.client().await?;
            let groups = store::roster::groups_of(&client, self.caller.key).await?;
            drop(client);
            for group in groups {
                if !self.readers.contains_key(&group) {
                    self.node.hub.follow_group(&group, &self.bell);
                    self.readers.insert(group.clone(), Reader::default());
                }
                if !self.due.contains(&group) {
                    self.due.push_back(group);
                }
            }
        }
        if self.inbox {
            for welcome in inbox::unread(&self.node, &self.caller).await? {
                let id = welcome
                    .group
                    .as_ref()
                    .map(|g| (g.id.to_vec(), welcome.seq))
                    .unwrap_or_default();
                if self.sent_welcomes.insert(id) {
                    self.send(frame::Frame::Welcome(welcome)).await?;
                }
            }
        }
        Ok(())
    }

    /// One frame for each group in turn, until nothing is due.
    async fn drain(&mut self) -> Result<(), End> {
        while let Some(group) = self.due.pop_front() {
            if self.step(&group).await? {
                self.due.push_back(group);
            }
        }
        Ok(())
    }

    /// Sends the next frame of one group; true if there is more.
    async fn step(&mut self, group: &[u8]) -> Result<bool, End> {
        let Some(reader) = self.readers.get(group).cloned() else {
            return Ok(false);
        };
        let Some(view) = self.view(group).await? else {
            return Err(Error::no_group().into());
        };
        read::check_cursor(&self.node, group, reader.after, reader.chain, view.head.seq).await?;
        if let Some(reader) = self.readers.get_mut(group) {
            reader.chain = None;
        }
        let Some(span) = read::next_span(&view.intervals, reader.after, view.head.seq) else {
            return self.nothing_new(group, &view).await;
        };
        let next = read::next(&self.node, group, span, FRAME_BYTES, view.head.seq).await?;
        let Some(after) = next.last() else {
            return Err(Error::Corrupt("a hole in the log").into());
        };
        let reader = Reader {
            after,
            chain: None,
            ended: false,
        };
        self.readers.insert(group.to_vec(), reader);
        let frame = match next {
            Next::Entries(entries) => frame::Frame::Entries(entries),
            Next::Pruned(pruned) => frame::Frame::Pruned(pruned),
        };
        self.send(frame).await?;
        Ok(true)
    }

    /// At the head: state for members, the end for those who were removed.
    async fn nothing_new(&mut self, group: &[u8], view: &View) -> Result<bool, End> {
        if let Some((at_seq, why)) = end_of(view) {
            if at_seq > view.head.seq {
                // Removed after the head was read: its removing Commit comes first.
                return Ok(true);
            }
            let Some(reader) = self.readers.get_mut(group) else {
                return Ok(false);
            };
            if !std::mem::replace(&mut reader.ended, true) {
                let ended = Ended {
                    group: Some(read::group_ref(&self.node, group)),
                    at_seq,
                    why: why.into(),
                };
                self.send(frame::Frame::Ended(ended)).await?;
            }
            return Ok(false);
        }
        let state = read::state(&self.node, group, &view.head);
        self.send(frame::Frame::State(state)).await?;
        Ok(false)
    }

    /// What the device may see of a group now; `None` for a group that it was never in.
    async fn view(&self, group: &[u8]) -> Result<Option<View>, End> {
        let client = self.node.db.client().await?;
        // The head first, as in `read::view`.
        let head = store::groups::head(&client, group).await?;
        let reading = store::roster::reading(&client, group, self.caller.key).await?;
        if reading.revoked {
            return Err(Error::refused(Reason::DeviceRevoked, "this device was revoked").into());
        }
        Ok(head
            .filter(|_| !reading.intervals.is_empty())
            .map(|head| View {
                head,
                intervals: reading.intervals,
            }))
    }

    async fn heartbeat(&mut self) -> Result<(), End> {
        let groups: Vec<Vec<u8>> = self.readers.keys().cloned().collect();
        let client = self.node.db.client().await?;
        let now = store::groups::now(&client).await?;
        let pulses = store::groups::pulses(&client, &groups).await?;
        drop(client);
        let mut moved = Vec::new();
        for (group, Pulse { head_seq, .. }) in pulses {
            let behind = self.readers.get(&group).is_some_and(|r| r.after < head_seq);
            if behind {
                moved.push(State {
                    group: Some(read::group_ref(&self.node, &group)),
                    head_seq,
                    ..State::default()
                });
                self.due.push_back(group);
            }
        }
        self.send(frame::Frame::Heartbeat(Heartbeat {
            server_time_micros: now,
            heads: moved,
        }))
        .await?;
        self.drain().await
    }

    async fn send(&self, frame: frame::Frame) -> Result<(), End> {
        let frame = Frame { frame: Some(frame) };
        self.sink.send(Ok(frame)).await.map_err(|_| End::Gone)
    }
}

struct View {
    head: crate::group::Head,
    intervals: Vec<Interval>,
}

/// Follows the heads of everything that this node's streams watch: once per node, not per stream.
pub async fn poll_heads(node: Node, shutdown: Shutdown) {
    let mut ticker = shutdown.ticker(Duration::from_millis(node.config.head_poll_millis));
    while ticker.next().await {
        if let Err(error) = poll_once(&node).await {
            tracing::warn!(%error, "cannot poll the heads");
        }
    }
}

async fn poll_once(node: &Node) -> Result<(), DbError> {
    let (groups, devices) = node.hub.watched();
    if groups.is_empty() && devices.is_empty() {
        return Ok(());
    }
    let client = node.db.client().await?;
    let pulses = store::groups::pulses(&client, &groups).await?;
    for (group, pulse) in &pulses {
        node.hub.group_moved(group, pulse.head_seq);
    }
    for (device, pulse) in store::roster::pulses(&client, &devices).await? {
        node.hub.device_polled(device, pulse);
    }
    drop(client);
    asking::look(node, &pulses).await
}
