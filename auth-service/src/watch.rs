//! `WatchDeviceStatus`: everything after a cursor, then what comes, with a signed heartbeat in between: silence is an alarm.

use std::time::Duration;

use chancery_proto::{
    auth::v1::{SignedStatus, WatchDeviceStatusRequest, WatchDeviceStatusResponse, signed_status},
    common::v1::Reason,
};
use service_kit::lifecycle::{Shutdown, spawn_short};
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
/// `HISTORY_CHANGED` when the cursor belongs to another history or lies beyond the end, `MALFORMED`, or the database.
pub async fn open(
    node: &Node,
    request: &WatchDeviceStatusRequest,
    shutdown: &Shutdown,
) -> Result<ReceiverStream<Result<WatchDeviceStatusResponse, Status>>, Error> {
    // Before the first read: what comes in between wakes the stream.
    let moved = node.moved.subscribe();
    let client = node.db.client().await?;
    let head = store::feed::head(&client).await?;
    drop(client);
    let history: &[u8] = &request.history_id;
    if !history.is_empty() && history.len() != 16 {
        return Err(Error::malformed("history_id", "16 bytes are expected"));
    }
    let other = !history.is_empty() && history != head.history_id.as_bytes();
    if other || request.after_seq > head.seq {
        return Err(Error::refused(
            Reason::HistoryChanged,
            "the cursor belongs to another history of this feed",
        ));
    }
    let (sink, stream) = mpsc::channel(2);
    let watcher = Watcher {
        node: node.clone(),
        history_id: head.history_id,
        cursor: request.after_seq,
        sink,
    };
    spawn_short(watcher.run(moved, shutdown.clone()));
    Ok(ReceiverStream::new(stream))
}

struct Watcher {
    node: Node,
    history_id: uuid::Uuid,
    cursor: u64,
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
        loop {
            let client = self.node.db.client().await?;
            head = store::feed::head(&client).await?;
            if head.history_id != self.history_id {
                return Err(Error::refused(
                    Reason::HistoryChanged,
                    "the database was restored",
                ));
            }
            let items = if head.seq > self.cursor {
                store::feed::after(&client, self.cursor, PART).await?
            } else {
                Vec::new()
            };
            drop(client);
            let Some(last) = items.last() else { break };
            self.cursor = last.seq;
            let items = items.into_iter().map(signed).collect();
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
            vec![feed::heartbeat(&self.node.keys, &self.node.signer, &head)?]
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

fn signed(item: store::feed::Item) -> SignedStatus {
    SignedStatus {
        content: Some(signed_status::Content::Status(item.status.into())),
        signature: item.signature.into(),
        chain: item.chain.into_iter().map(Into::into).collect(),
    }
}
