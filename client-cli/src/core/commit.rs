//! Building a Commit with its CommitInfo, and an application message. What is built is kept before it is sent.

use chancery_proto::{
    commit_info::MessageData,
    delivery::v1::{CommitBundle, SendMessageRequest},
    mutants::{self, Mutant},
};
use openmls::prelude::*;
use prost::Message as _;

pub use super::plan::Plan;
use super::{
    Context, CoreError, group, mls,
    outbox::{self, Outgoing},
    proposals,
    records::{self, GroupName, GroupRecord, GroupState, Operation},
};
use crate::store::Step;

/// The record of a group that this device may act in.
///
/// # Errors
/// Unknown, or not active.
pub fn active(step: &Step<'_>, name: &GroupName) -> Result<GroupRecord, CoreError> {
    let record = records::known(step, name)?;
    if record.state != GroupState::Active {
        return Err(CoreError::State(record.state.name().to_owned()));
    }
    Ok(record)
}

/// A Commit's messages as they are submitted.
///
/// # Errors
/// openmls gave no GroupInfo, or cannot encode.
pub fn bundle_of(
    bundle: CommitMessageBundle,
    message_id: [u8; 16],
    tree: chancery_proto::delivery::v1::TreeUpdate,
) -> Result<CommitBundle, CoreError> {
    let (commit, welcome, group_info) = bundle.into_messages();
    let group_info = group_info.ok_or_else(|| CoreError::Mls("no GroupInfo".into()))?;
    let welcomes = welcome
        .map(|welcome| Ok(vec![welcome.to_bytes().map_err(mls)?.into()]))
        .unwrap_or_else(|| Ok::<_, CoreError>(Vec::new()))?;
    Ok(CommitBundle {
        message_id: message_id.to_vec().into(),
        commit: commit.to_bytes().map_err(mls)?.into(),
        welcomes,
        group_info: group_info.to_bytes().map_err(mls)?.into(),
        tree: Some(tree),
        ..CommitBundle::default()
    })
}

/// Frames a message in the current epoch and keeps it in the outbox. The same id with the same text is the same message.
///
/// # Errors
/// The state does not allow it, openmls, or the store.
pub fn message(
    step: &Step<'_>,
    context: Context<'_>,
    record: &GroupRecord,
    message_id: [u8; 16],
    text: &[u8],
) -> Result<Outgoing, CoreError> {
    if record.leaves {
        return Err(CoreError::State(record.state_name().to_owned()));
    }
    if let Some(person) = record.distrusted.first()
        && mutants::is_on(Mutant::UnverifiedLeafSilences)
    {
        return Err(CoreError::Distrusted(format!(
            "the group holds {}",
            person.device_uri()
        )));
    }
    let mut mls_group = group::load(step, &record.name)?;
    // openmls says nothing while its queue holds a proposal, and a Commit that was refused leaves there what stood in it.
    if !mutants::is_on(Mutant::ProposalsStayQueued) {
        proposals::hand_over(step, &mut mls_group, &[])?;
    }
    let aad = MessageData {
        message_id: Some(message_id),
        commit_info: None,
    };
    mls_group.set_aad(aad.encode());
    let key = context.identity.leaf_key(mls_group.ciphersuite())?;
    let framed = mls_group
        .create_message(step.provider(), &key, text)
        .map_err(mls)?
        .to_bytes()
        .map_err(mls)?;
    let request = SendMessageRequest {
        group: Some(record.name.to_ref()),
        message_id: message_id.to_vec().into(),
        message: framed.into(),
        epoch_seq: record.epoch_seq,
        ..SendMessageRequest::default()
    };
    let outgoing = Outgoing {
        text: text.to_vec(),
        request: request.encode_to_vec(),
        epoch: record.epoch,
        epoch_seq: record.epoch_seq,
        accepted: None,
    };
    outbox::put(step, &record.name, &message_id, &outgoing)?;
    group::keep(step, mls_group);
    Ok(outgoing)
}

/// Drops a pending Commit that the server has refused for good.
///
/// # Errors
/// The store.
pub fn drop_pending(step: &Step<'_>, record: &mut GroupRecord) -> Result<(), CoreError> {
    let Some(pending) = record.pending.take() else {
        return Ok(());
    };
    match pending.operation {
        Operation::Commit => {
            let mut mls_group = group::load(step, &record.name)?;
            mls_group.clear_pending_commit(step.provider().storage())?;
            records::put_group(step, record)?;
            group::keep(step, mls_group);
        }
        // openmls stored the new state already when the external Commit was made.
        Operation::External => {
            group::forget(step, &record.name)?;
            record.state = GroupState::NeedsRejoin("an external Commit was refused".into());
            records::put_group(step, record)?;
        }
        Operation::Create => {
            group::forget(step, &record.name)?;
            records::delete_group(step, &record.name)?;
        }
    }
    Ok(())
}
