//! `SendMessages`: the same as `SendMessage`, many on one stream. Each answer names its message; a refusal of one does not end the stream.

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        Refusal, SendMessageRequest, SendMessagesResponse, send_messages_response::Answer,
    },
    status,
};
use service_kit::lifecycle::Shutdown;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    caller::Caller,
    error::{self, Error},
    node::Node,
    prepare, submit,
};

type Sink = mpsc::Sender<Result<SendMessagesResponse, Status>>;

/// Answers that wait for a slow reader, before reading from it stops.
const WAITING_ITEMS: usize = 16;

/// Takes messages in the order in which they come, until the client is done, its token ends, or shutdown.
pub fn send_messages(
    node: Node,
    caller: Caller,
    messages: Streaming<SendMessageRequest>,
    shutdown: Shutdown,
) -> mpsc::Receiver<Result<SendMessagesResponse, Status>> {
    let (sink, answers) = mpsc::channel(WAITING_ITEMS);
    tokio::spawn(async move {
        let soft = shutdown.soft();
        let end = tokio::select! {
            end = run(&node, &caller, messages, &sink) => end,
            () = soft.cancelled() => Err(Error::refused(Reason::ShuttingDown, "the node is shutting down; repeat what was not answered")),
        };
        if let Err(error) = end {
            // If the client is gone, nobody needs the reason.
            let _gone = sink.send(Err(error::status(error))).await;
        }
    });
    answers
}

async fn run(
    node: &Node,
    caller: &Caller,
    mut messages: Streaming<SendMessageRequest>,
    sink: &Sink,
) -> Result<(), Error> {
    let token_end = tokio::time::sleep(node.gate.time_left(caller, &node.db).await?);
    tokio::pin!(token_end);
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            () = &mut token_end => {
                return Err(Error::refused(Reason::TokenExpired, "the token expired; repeat what was not answered"));
            }
        };
        // The client closed its side, or its connection broke.
        let Ok(Some(message)) = message else {
            return Ok(());
        };
        if sink
            .send(Ok(answer(node, caller, message).await))
            .await
            .is_err()
        {
            return Ok(());
        }
    }
}

async fn answer(node: &Node, caller: &Caller, message: SendMessageRequest) -> SendMessagesResponse {
    let sent = match prepare::send(node, &message) {
        Ok(send) => submit::send_message(node, caller, send).await,
        Err(error) => Err(error),
    };
    let answer = match sent {
        Ok(accepted) => Answer::Accepted(accepted),
        Err(error) => Answer::Refused(refusal(&error::status(error))),
    };
    SendMessagesResponse {
        message_id: message.message_id,
        answer: Some(answer),
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
