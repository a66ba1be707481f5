//! `WatchDeviceStatus`: everything after a cursor, then what comes, with a signed heartbeat in between: silence is an alarm.

use std::time::Duration;

use chancery_proto::{
    auth::v1::{SignedStatus, WatchDeviceStatusRequest, WatchDeviceStatusResponse, signed_status},
    common::v1::Reason,
    signed,
};
use service_kit::{
    db::{DbError, GenericClient},
    lifecycle::{Shutdown, spawn_short},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    error::{Error, status},
    feed,
    node::Node,
    store,
};

/// Items in one part; an item is below 2 KiB.
const PART: i64 = 100;

/// Opens the feed after a cursor.
///
/// # Errors
/// `HISTORY_CHANGED` when the cursor belongs to another history or past, or lies beyond the end, `STORAGE` where the database is a replica,
/// `MALFORMED`, or the database.
pub async fn open(
    node: &Node,
    request: &WatchDeviceStatusRequest,
    shutdown: &Shutdown,
) -> Result<ReceiverStream<Result<WatchDeviceStatusResponse, Status>>, Error> {
    let (history, known): (&[u8], &[u8]) = (&request.history_id, &request.item_sha256);
    if !history.is_empty() && history.len() != 16 {
        return Err(Error::malformed("history_id", "16 bytes are expected"));
    }
    if !known.is_empty() && known.len() != 32 {
        return Err(Error::malformed("item_sha256", "32 bytes are expected"));
    }
    // Before the first read: what comes in between wakes the stream.
    let moved = node.moved.subscribe();
    let client = node.db.client().await?;
    let head = head(&client).await?;
    let last = hash_at(&client, request.after_seq).await?;
    drop(client);
    let other_history = !history.is_empty() && history != head.history_id.as_bytes();
    let other_item = !known.is_empty()
        && request.after_seq > 0
        && last.as_ref().is_none_or(|hash| hash.as_slice() != known);
    if other_history || other_item || request.after_seq > head.seq {
        return Err(history_changed());
    }
    let (sink, stream) = mpsc::channel(2);
    let watcher = Watcher {
        node: node.clone(),
        history_id: head.history_id,
        cursor: request.after_seq,
        last,
        sink,
    };
    spawn_short(watcher.run(moved, shutdown.clone()));
    Ok(ReceiverStream::new(stream))
}

fn history_changed() -> Error {
    Error::refused(
        Reason::HistoryChanged,
        "the cursor belongs to another past of this feed",
    )
}

/// The end of the feed, which only a primary can vouch for.
async fn head<C: GenericClient>(client: &C) -> Result<store::feed::Head, Error> {
    let head = store::feed::head(client).await?;
    if head.primary {
        Ok(head)
    } else {
        Err(Error::Db(DbError::Unavailable))
    }
}

/// The hash of the item at this position, where there is one.
async fn hash_at<C: GenericClient>(client: &C, seq: u64) -> Result<Option<[u8; 32]>, Error> {
    let status = match seq {
        0 => None,
        seq => store::feed::at(client, seq).await?,
    };
    Ok(status.as_deref().map(signed::status_sha256))
}

struct Watcher {
    node: Node,
    history_id: uuid::Uuid,
    cursor: u64,
    /// Hash of the item at the cursor. A database that was put in place of this one, or that fell behind, holds another one there.
    last: Option<[u8; 32]>,
    sink: mpsc::Sender<Result<WatchDeviceStatusResponse, Status>>,
}

impl Watcher {
    async fn run(mut self, mut moved: tokio::sync::watch::Receiver<()>, shutdown: Shutdown) {
        let soft = shutdown.soft();
        let heartbeat_every = Duration::from_secs(self.node.config.heartbeat_seconds);
        let poll = Duration::from_millis(self.node.config.feed_poll_millis);
        let mut heartbeat_at = Instant::now();
        let mut caught_up = false;
        loop {
            let due = Instant::now() >= heartbeat_at;
            match self.advance(due, !caught_up).await {
                Ok(true) => {}
                // The reader is gone.
                Ok(false) => return,
                Err(error) => {
                    let _gone = self.sink.send(Err(status(error))).await;
                    return;
                }
            }
            caught_up = true;
            if due {
                heartbeat_at = Instant::now() + heartbeat_every;
            }
            tokio::select! {
                () = soft.cancelled() => {
                    let ends = chancery_proto::status::refusal(Reason::ShuttingDown, "this node is stopping", []);
                    let _gone = self.sink.send(Err(ends)).await;
                    return;
                }
                () = self.sink.closed() => return,
                _ = moved.changed() => {}
                () = tokio::time::sleep(poll) => {}
            }
        }
    }

    /// Sends what is new, and a heartbeat when it is time. `false`: the reader is gone.
    async fn advance(&mut self, heartbeat: bool, first: bool) -> Result<bool, Error> {
        let mut head;
        let mut compared = false;
        loop {
            let client = self.node.db.client().await?;
            head = self::head(&client).await?;
            let new = head.seq > self.cursor;
            if head.history_id != self.history_id || head.seq < self.cursor {
                return Err(history_changed());
            }
            if (new || heartbeat) && !compared {
                if hash_at(&client, self.cursor).await? != self.last {
                    return Err(history_changed());
                }
                compared = true;
            }
            let items = if new {
                store::feed::after(&client, self.cursor, PART).await?
            } else {
                Vec::new()
            };
            drop(client);
            let Some(last) = items.last() else { break };
            self.cursor = last.seq;
            self.last = Some(signed::status_sha256(&last.status));
            let items = items.into_iter().map(as_sent).collect();
            let response = WatchDeviceStatusResponse {
                items,
                caught_up: false,
            };
            if self.sink.send(Ok(response)).await.is_err() {
                return Ok(false);
            }
        }
        if !heartbeat && !first {
            return Ok(true);
        }
        let items = if heartbeat {
            let (keys, signer) = (&self.node.keys, &self.node.signer);
            vec![feed::heartbeat(keys, signer, &head, self.last)?]
        } else {
            Vec::new()
        };
        let response = WatchDeviceStatusResponse {
            items,
            caught_up: first,
        };
        Ok(self.sink.send(Ok(response)).await.is_ok())
    }
}

fn as_sent(item: store::feed::Item) -> SignedStatus {
    SignedStatus {
        content: Some(signed_status::Content::Status(item.status.into())),
        signature: item.signature.into(),
        chain: item.chain.into_iter().map(Into::into).collect(),
    }
}
