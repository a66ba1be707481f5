//! One message: the question to the state machine, what its entry holds, and the answer.

use chancery_proto::delivery::v1::{EntryKind, SendMessageResponse};
use service_kit::db::{GenericClient, TxError};
use uuid::Uuid;

use crate::{
    error::Error,
    log::entry::{Body, outcome},
    ordering::group::{self, Append, Command, DeviceKey, Head, Prior},
    store,
};

type TxResult<T> = Result<T, TxError<Error>>;
/// The number of the epoch that a message names, or the entry that took it back.
pub(crate) type Named = (Option<u64>, Option<u64>);

/// A message ready to be decided on.
#[derive(Debug, Clone)]
pub struct PreparedSend {
    /// The group.
    pub group: Vec<u8>,
    /// Made by the client.
    pub message_id: Uuid,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// A proposal, or an application message.
    pub proposal: bool,
    /// From the framing.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// MLSMessage bytes.
    pub message: bytes::Bytes,
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
