//! One entry at its place: its chain value, its row, and the head after it.

use chancery_proto::{
    chain::{self, ChainInput},
    delivery::v1::{EntryKind, Outcome},
};
use service_kit::db::{Transaction, TxError};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    error::Error,
    ordering::group::{Append, Head},
    store::{self, log::EntryRow},
};

/// What an entry holds besides its place.
pub(crate) struct Body<'a> {
    pub(crate) kind: EntryKind,
    pub(crate) message_id: Uuid,
    pub(crate) content_hash: [u8; 32],
    pub(crate) payload: &'a [u8],
}

impl<'a> Body<'a> {
    /// Of an entry that the service itself makes: its id is new each time, and nobody repeats it.
    pub(crate) fn by_service(kind: EntryKind, payload: &'a [u8]) -> Self {
        Self {
            kind,
            message_id: Uuid::new_v4(),
            content_hash: Sha256::digest(payload).into(),
            payload,
        }
    }

    /// As a row of a group's log, at the place that was decided.
    pub(crate) fn at(&self, group: &'a [u8], append: &Append, chain: [u8; 32]) -> EntryRow<'a> {
        EntryRow {
            group,
            seq: append.seq,
            epoch: append.epoch,
            epoch_seq: append.epoch_seq,
            kind: self.kind as i16,
            message_id: self.message_id,
            accepted_at: append.accepted_at,
            content_hash: self.content_hash,
            chain,
            payload: self.payload,
        }
    }
}

/// The chain's value after an entry.
pub(crate) fn chain_after(
    group: &[u8],
    before: &Head,
    append: &Append,
    body: &Body<'_>,
) -> [u8; 32] {
    chain::next(
        &before.chain,
        &ChainInput {
            group,
            seq: append.seq,
            epoch_seq: append.epoch_seq,
            kind: u32::from((body.kind as i16).unsigned_abs()),
            message_id: body.message_id.as_bytes(),
            accepted_at_micros: append.accepted_at,
            payload_sha256: &Sha256::digest(body.payload).into(),
        },
    )
}

/// Writes the entry and the head after it; returns that head.
pub(crate) async fn append_entry<'a>(
    tx: &Transaction<'_>,
    group: &'a [u8],
    before: &Head,
    append: &Append,
    body: Body<'a>,
) -> Result<Head, TxError<Error>> {
    let chain = chain_after(group, before, append, &body);
    let row = body.at(group, append, chain);
    store::log::append(tx, &row).await?;
    let head = Head {
        chain,
        last_at: append.accepted_at,
        ..append.head.clone()
    };
    let rows = store::groups::advance(tx, group, before, &head).await?;
    if rows != 1 {
        return Err(TxError::Rejected(Error::Corrupt(
            "the head moved under the lock",
        )));
    }
    if head.settled_seq > before.settled_seq {
        store::epochs::forget_committers(tx, group, head.settled_seq).await?;
    }
    Ok(head)
}

/// Everything in, or begun by, an epoch after the newest settled one is provisional. `named` is the entry's `epoch_seq`, for a Commit its own seq.
pub(crate) fn outcome(head: &Head, named: u64, voided_by: Option<u64>) -> Outcome {
    if voided_by.is_some() {
        Outcome::Voided
    } else if named > head.settled_seq {
        Outcome::Provisional
    } else {
        Outcome::Standing
    }
}
