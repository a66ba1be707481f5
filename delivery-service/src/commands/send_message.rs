//! One application message or proposal. Those that come at the same time are appended together, see
//! [`crate::log::batch`]; one that comes with a Commit is appended with it.

use chancery_proto::delivery::v1::SendMessageResponse;
use service_kit::db::{Transaction, TxError};

use crate::{
    access::caller::Caller,
    error::Error,
    log::{
        batch::Ticket,
        entry::append_entry,
        message::{PreparedSend, accepted, body, command, named_epoch, replayed_send},
    },
    node::Node,
    ordering::group::{Decision, Group},
    reading::pending_removals,
};

type Tx<'t> = &'t Transaction<'t>;
type TxResult<T> = Result<T, TxError<Error>>;

/// Takes one message.
///
/// # Errors
/// Every refusal of [`Group::decide`], how the device stands, or the database.
pub async fn send_message(
    node: &Node,
    caller: &Caller,
    send: PreparedSend,
) -> Result<SendMessageResponse, Error> {
    let group = send.group.clone();
    let ticket = node.batch.put(caller, send).await?;
    answer(node, &group, ticket).await
}

/// What became of a message that was put in a batch.
///
/// # Errors
/// See [`send_message`].
pub async fn answer(
    node: &Node,
    group: &[u8],
    ticket: Ticket,
) -> Result<SendMessageResponse, Error> {
    match ticket.answer().await {
        Ok(response) => Ok(response),
        Err(error) => Err(pending_removals::explain(node, group, error).await),
    }
}

/// Decides on and appends the message that comes with a Commit; the head is locked and `group` was read after.
pub(crate) async fn append_send(
    tx: Tx<'_>,
    caller: &Caller,
    send: &PreparedSend,
    group: &Group,
    now: i64,
) -> TxResult<SendMessageResponse> {
    let named = named_epoch(tx, &send.group, &group.head, send.epoch_seq).await?;
    let decision = group.decide(&command(caller.key, send, named), now);
    match decision.map_err(|rejection| TxError::Rejected(rejection.into()))? {
        Decision::Replay(prior) => Ok(replayed_send(send, &group.head, &prior)),
        Decision::Append(append) => {
            let head = append_entry(tx, &send.group, &group.head, &append, body(send)).await?;
            Ok(accepted(send, &append, &head))
        }
    }
}
