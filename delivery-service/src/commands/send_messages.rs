//! `SendMessages`: the same as `SendMessage`, many on one stream and many under way at once. They are appended in the order in which they come, and
//! answered in that order; each answer names its message, and a refusal of one does not end the stream.

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        Refusal, SendMessageRequest, SendMessageResponse, SendMessagesResponse,
        send_messages_response::Answer,
    },
    status,
};
use service_kit::lifecycle::{Shutdown, spawn_short};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    access::caller::Caller,
    commands::send_message,
    error::{self, Error},
    log::batch::Ticket,
    node::Node,
    request,
};

type Sink = mpsc::Sender<Result<SendMessagesResponse, Status>>;

/// Answers that wait for a slow reader. While they wait, those behind them do, and at last no message is read any more.
const WAITING_ITEMS: usize = 64;

/// A message that was read from the stream.
struct UnderWay {
    group: Vec<u8>,
    message_id: bytes::Bytes,
    ticket: Result<Ticket, Error>,
}

/// Takes messages until the client is done, its token ends, or shutdown; what was taken by then is still answered.
pub fn send_messages(
    node: Node,
    caller: Caller,
    messages: Streaming<SendMessageRequest>,
    shutdown: Shutdown,
) -> mpsc::Receiver<Result<SendMessagesResponse, Status>> {
    let (sink, answers) = mpsc::channel(WAITING_ITEMS);
    let (under_way, taken) = mpsc::channel(node.config.batch.pipeline_items.into());
    let taking = take_until_end(node.clone(), caller, messages, under_way, shutdown);
    let end = spawn_short(taking);
    spawn_short(async move {
        if answer_all(&node, taken, &sink).await.is_ok()
            && let Ok(Err(error)) = end.await
        {
            // If the client is gone, nobody needs the reason.
            let _gone = sink.send(Err(error::status(error))).await;
        }
    });
    answers
}

async fn take_until_end(
    node: Node,
    caller: Caller,
    messages: Streaming<SendMessageRequest>,
    under_way: mpsc::Sender<UnderWay>,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let soft = shutdown.soft();
    let left = node.gate.time_left(&caller, &node.db).await?;
    tokio::select! {
        () = take(&node, &caller, messages, &under_way) => Ok(()),
        () = tokio::time::sleep(left) => {
            Err(Error::refused(Reason::TokenExpired, "the token expired; repeat what was not answered"))
        }
        () = soft.cancelled() => {
            Err(Error::refused(Reason::ShuttingDown, "the node is shutting down; repeat what was not answered"))
        }
    }
}

/// Puts what comes in its lane, until the client is done or its connection broke.
async fn take(
    node: &Node,
    caller: &Caller,
    mut messages: Streaming<SendMessageRequest>,
    under_way: &mpsc::Sender<UnderWay>,
) {
    while let Ok(Some(message)) = messages.message().await {
        // Its place first: what has a ticket is also answered.
        let Ok(place) = under_way.reserve().await else {
            return;
        };
        let may = node.issuers.may_write(&caller.domain);
        let (group, ticket) = match may.and_then(|()| request::send(node, &message)) {
            Ok(send) => (send.group.clone(), node.batch.put(caller, send).await),
            Err(error) => (Vec::new(), Err(error)),
        };
        place.send(UnderWay {
            group,
            message_id: message.message_id,
            ticket,
        });
    }
}

/// Answers in the order of taking; an error when the client is gone.
async fn answer_all(
    node: &Node,
    mut taken: mpsc::Receiver<UnderWay>,
    sink: &Sink,
) -> Result<(), ()> {
    while let Some(one) = taken.recv().await {
        let sent = match one.ticket {
            Ok(ticket) => send_message::answer(node, &one.group, ticket).await,
            Err(error) => Err(error),
        };
        let answer = SendMessagesResponse {
            message_id: one.message_id,
            answer: Some(answer(sent)),
        };
        sink.send(Ok(answer)).await.map_err(|_| ())?;
    }
    Ok(())
}

fn answer(sent: Result<SendMessageResponse, Error>) -> Answer {
    match sent {
        Ok(accepted) => Answer::Accepted(accepted),
        Err(error) => Answer::Refused(refusal(&error::status(error))),
    }
}

/// What a unary call would have put in its status.
fn refusal(status: &Status) -> Refusal {
    let refusal = status::Refusal::from_status(status);
    let wait = refusal.retry_after.unwrap_or_default().as_millis();
    Refusal {
        code: i32::from(refusal.code),
        reason: refusal.reason.unwrap_or_default().into(),
        metadata: refusal.metadata,
        retry_after_millis: u32::try_from(wait).unwrap_or(u32::MAX),
    }
}
