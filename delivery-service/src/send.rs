//! Use case: one application message or proposal. Those that come at the same time are appended together, see [`crate::batch`]; one that
//! comes with a Commit is appended with it.

use chancery_proto::delivery::v1::{EntryKind, SendMessageResponse};
use service_kit::db::{GenericClient, Transaction, TxError};

use crate::{
    append::{Body, append_entry, outcome},
    batch::Ticket,
    caller::Caller,
    error::Error,
    group::{self, Append, Command, Decision, DeviceKey, Group, Head, Prior},
    node::Node,
    prepare::PreparedSend,
    revocations, store,
};

type Tx<'t> = &'t Transaction<'t>;
type TxResult<T> = Result<T, TxError<Error>>;
/// The number of the epoch that a message names, or the entry that took it back.
pub(crate) type Named = (Option<u64>, Option<u64>);

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
        Err(error) => Err(revocations::explain(node, group, error).await),
    }
}

/// The question to the state machine.
pub(crate) fn command(
    sender: DeviceKey,
    send: &PreparedSend,
    (named_epoch, voided_by): Named,
) -> Command {
    Command::Send(group::Send {
        device: sender,
        content_hash: send.content_hash,
        proposal: send.proposal,
        epoch: send.epoch,
        epoch_seq: send.epoch_seq,
        named_epoch,
        voided_by,
    })
}

/// What its entry holds.
pub(crate) fn body(send: &PreparedSend) -> Body<'_> {
    let kind = if send.proposal {
        EntryKind::Proposal
    } else {
        EntryKind::Application
    };
    Body {
        kind,
        message_id: send.message_id,
        content_hash: send.content_hash,
        payload: &send.message,
    }
}

/// The answer to a message that was appended; `head` is the head after it.
pub(crate) fn accepted(send: &PreparedSend, append: &Append, head: &Head) -> SendMessageResponse {
    SendMessageResponse {
        message_id: send.message_id.as_bytes().to_vec().into(),
        seq: append.seq,
        chain: head.chain.to_vec().into(),
        outcome: outcome(head, append.epoch_seq, None).into(),
        voided_by_seq: 0,
        replayed: false,
        accepted_at_micros: append.accepted_at,
    }
}

/// The answer to a repeat.
pub(crate) fn replayed_send(
    send: &PreparedSend,
    head: &Head,
    prior: &Prior,
) -> SendMessageResponse {
    SendMessageResponse {
        message_id: send.message_id.as_bytes().to_vec().into(),
        seq: prior.seq,
        chain: prior.chain.to_vec().into(),
        outcome: outcome(head, prior.epoch_seq, prior.voided_by).into(),
        voided_by_seq: prior.voided_by.unwrap_or(0),
        replayed: true,
        accepted_at_micros: prior.accepted_at,
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

/// The number of the epoch with this name, or the entry that took it back.
pub(crate) async fn named_epoch<C: GenericClient>(
    tx: &C,
    group: &[u8],
    head: &Head,
    epoch_seq: u64,
) -> TxResult<Named> {
    if epoch_seq == head.epoch_seq {
        return Ok((Some(head.epoch), None));
    }
    Ok(match store::epochs::find(tx, group, epoch_seq).await? {
        Some(epoch) => (Some(epoch.epoch), None),
        None => (
            None,
            store::recovery::voided_by(tx, group, epoch_seq).await?,
        ),
    })
}
