//! What requests and entries of the contract are made of, for every member that stands on it.

use chancery_proto::{
    chain::{self, ChainInput},
    commit_info::{CommitInfo, Member, MessageData},
    delivery::v1::{CommitBundle, Entry},
};
use sha2::{Digest as _, Sha256};

use crate::{
    engine::Made,
    wire::{Person, full_tree},
};

/// Devices of a domain as CommitInfo has them: sorted, each once.
pub fn members(domain: &str, people: impl IntoIterator<Item = Person>) -> Vec<Member> {
    let mut members: Vec<Member> = people
        .into_iter()
        .map(|person| Member {
            domain: domain.to_owned(),
            user: *person.user.as_bytes(),
            device: *person.device.as_bytes(),
        })
        .collect();
    members.sort();
    members.dedup();
    members
}

/// Authenticated data of a message, or of a Commit.
pub fn aad(id: [u8; 16], commit_info: Option<CommitInfo>) -> Vec<u8> {
    MessageData {
        message_id: Some(id),
        commit_info,
    }
    .encode()
}

/// A Commit as it is submitted.
///
/// # Errors
/// Its tree is none.
pub fn bundle(id: [u8; 16], made: Made) -> anyhow::Result<CommitBundle> {
    Ok(CommitBundle {
        message_id: id.to_vec().into(),
        commit: made.commit.into(),
        welcomes: made.welcome.into_iter().map(Into::into).collect(),
        group_info: made.epoch.group_info.into(),
        tree: Some(full_tree(&made.epoch.tree)?),
        ..CommitBundle::default()
    })
}

/// The chain's value after an entry.
pub fn chain_after(previous: &[u8; 32], group: &[u8], entry: &Entry, payload: &[u8]) -> [u8; 32] {
    chain::next(
        previous,
        &ChainInput {
            group,
            seq: entry.seq,
            epoch_seq: entry.epoch_seq,
            kind: entry.kind,
            message_id: &entry.message_id,
            accepted_at_micros: entry.accepted_at_micros,
            payload_sha256: &Sha256::digest(payload).into(),
        },
    )
}
