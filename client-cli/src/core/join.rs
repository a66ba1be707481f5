//! Coming into a group: by Welcome, or by an external Commit after this device lost its state.

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::{GetGroupInfoResponse, SubmitCommitRequest, Welcome as WelcomeFrame},
};
use openmls::prelude::{tls_codec::Deserialize as _, *};
use prost::Message as _;

use super::{
    Context, CoreError, commit, group,
    identity::{members, person_of},
    mls, proposals,
    records::{self, GroupName, GroupRecord, GroupState, Intent, Operation, Pending, Person},
};
use crate::store::Step;

fn chain32(bytes: &[u8]) -> Result<[u8; 32], CoreError> {
    bytes
        .try_into()
        .map_err(|_| CoreError::Malformed("a chain value of another length".into()))
}

/// Members whose certificate no pinned root ever signed. One that has only ended is none of them: it was valid when its Commit was judged.
fn distrusted(context: Context<'_>, mls_group: &MlsGroup) -> Result<Vec<Person>, CoreError> {
    mls_group
        .members()
        .filter(|m| context.trust.vouched(&m.credential, context.now).is_err())
        .map(|m| person_of(&m.credential, &m.signature_key))
        .collect()
}

/// Whether this Welcome was used already.
///
/// # Errors
/// The store.
pub fn known(step: &Step<'_>, name: &GroupName, seq: u64) -> Result<bool, CoreError> {
    let record = records::group(step, name)?;
    // Who was removed has read on, and could use nothing of what came after.
    let read = |r: &GroupRecord| r.head_seq >= seq && r.state != GroupState::Removed;
    Ok(record.is_some_and(|r| r.joined_seq >= seq || read(&r)))
}

/// Joins by a Welcome with the tree of its epoch. A failure undoes everything: the KeyPackage is not used up.
///
/// # Errors
/// openmls, a group that is not what the server says, or the store.
pub fn welcome(
    step: &Step<'_>,
    context: Context<'_>,
    frame: &WelcomeFrame,
    tree: RatchetTreeIn,
) -> Result<GroupRecord, CoreError> {
    let reference = frame
        .group
        .as_ref()
        .ok_or_else(|| CoreError::Malformed("a Welcome without a group".into()))?;
    let name = GroupName::from_ref(reference);
    // Of an earlier membership.
    drop(step.take_loaded(&name.id));
    let MlsMessageBodyIn::Welcome(message) = MlsMessageIn::tls_deserialize_exact(&frame.welcome)
        .map_err(mls)?
        .extract()
    else {
        return Err(CoreError::Malformed("not a Welcome".into()));
    };
    // Before the policy can be read; the window of version 1 is set right below.
    let staged =
        StagedWelcome::build_from_welcome(step.provider(), &group::join_config(1), message)
            .map_err(mls)?
            .with_ratchet_tree(tree)
            .replace_old_group()
            .skip_lifetime_validation()
            .build()
            .map_err(mls)?;
    let policy = group::policy_of(staged.group_context().extensions())?;
    if staged.group_context().group_id().as_slice() != name.id || policy.home_domain != name.domain
    {
        return Err(CoreError::Malformed("a Welcome into another group".into()));
    }
    let mut mls_group = staged.into_group(step.provider()).map_err(mls)?;
    mls_group.set_configuration(
        step.provider().storage(),
        &group::join_config(policy.past_epochs),
    )?;
    group::roster(&mls_group)?;
    let mut record = GroupRecord {
        epoch: mls_group.epoch().as_u64(),
        epoch_seq: frame.epoch_seq,
        distrusted: distrusted(context, &mls_group)?,
        ..GroupRecord::new(name, GroupState::Active, frame.seq, chain32(&frame.chain)?)
    };
    group::remember_extensions(&mut record, &mls_group)?;
    proposals::forget(step, &mut record)?;
    records::put_group(step, &record)?;
    records::put_welcome(step, &record.name, &frame.encode_to_vec())?;
    Ok(record)
}

/// A group whose Welcome cannot be used: in the roster, without a state.
///
/// # Errors
/// The store.
pub fn failed(
    step: &Step<'_>,
    frame: &WelcomeFrame,
    name: &GroupName,
    why: &str,
) -> Result<(), CoreError> {
    let state = GroupState::NeedsRejoin(format!("its Welcome cannot be used: {why}"));
    let record = GroupRecord {
        epoch_seq: frame.epoch_seq,
        ..GroupRecord::new(name.clone(), state, frame.seq, chain32(&frame.chain)?)
    };
    records::put_group(step, &record)?;
    Ok(())
}

/// Makes an external Commit on the stored GroupInfo and tree, and keeps it as pending. openmls' old state of the group is replaced in the same transaction.
///
/// # Errors
/// openmls, or the store.
pub fn external(
    step: &Step<'_>,
    context: Context<'_>,
    name: &GroupName,
    info: &GetGroupInfoResponse,
    tree: RatchetTreeIn,
    message_id: [u8; 16],
) -> Result<GroupRecord, CoreError> {
    let MlsMessageBodyIn::GroupInfo(verifiable) =
        MlsMessageIn::tls_deserialize_exact(&info.group_info)
            .map_err(mls)?
            .extract()
    else {
        return Err(CoreError::Malformed("not a GroupInfo".into()));
    };
    let parsed = chancery_proto::group_info::GroupInfo::parse(&info.group_info, group::MAX_BYTES)?;
    let policy = parsed.policy()?;
    if parsed.group_id != name.id || policy.home_domain != name.domain {
        return Err(CoreError::Malformed(
            "the GroupInfo of another group".into(),
        ));
    }
    group::forget(step, name)?;
    let own = context.identity.person.clone();
    let commit_info = CommitInfo {
        added: members(vec![own.clone()]),
        removed: members(vec![own.clone()]),
        seen_seq: info.head_seq,
        seen_chain: chain32(&info.chain)?,
        ..CommitInfo::default()
    };
    let data = MessageData {
        message_id: Some(message_id),
        commit_info: Some(commit_info),
    };
    let provider = step.provider();
    let leaf = LeafNodeParameters::builder()
        .with_capabilities(group::capabilities())
        .build();
    let key = context.identity.leaf_key(verifiable.ciphersuite())?;
    let (mls_group, bundle) = MlsGroup::external_commit_builder()
        .with_ratchet_tree(tree)
        .with_config(group::join_config(policy.past_epochs))
        .with_aad(data.encode())
        .skip_lifetime_validation()
        .build_group(provider, verifiable, key.credential())
        .map_err(mls)?
        .leaf_node_parameters(leaf)
        .load_psks(provider.storage())
        .map_err(mls)?
        .create_group_info(true)
        .build(provider.rand(), provider.crypto(), &key, |_| true)
        .map_err(mls)?
        .finalize(provider)
        .map_err(mls)?;
    let known = records::group(step, name)?;
    if let Some(known) = &known {
        group::compare_extensions(known, &mls_group)
            .map_err(|error| signed_by(error, &mls_group, parsed.signer))?;
    }
    let tree = group::tree_of(&mls_group.export_ratchet_tree())?.to_update();
    let request = SubmitCommitRequest {
        group: Some(name.to_ref()),
        epoch_seq: info.epoch_seq,
        bundles: vec![commit::bundle_of(bundle, message_id, tree)?],
    };
    let at_head = GroupRecord::new(
        name.clone(),
        GroupState::NeedsRejoin(String::new()),
        info.head_seq,
        chain32(&info.chain)?,
    );
    let mut record = known.unwrap_or(at_head);
    group::remember_extensions(&mut record, &mls_group)?;
    if std::mem::take(&mut record.skip_to_head) || record.state == GroupState::Removed {
        record.head_seq = info.head_seq;
        record.chain = chain32(&info.chain)?;
    }
    record.state = GroupState::NeedsRejoin("its external Commit is under way".into());
    record.epoch = mls_group.epoch().as_u64();
    record.distrusted = distrusted(context, &mls_group)?;
    proposals::forget(step, &mut record)?;
    record.leaving.clear();
    record.revoked.clear();
    record.claim = None;
    record.pending = Some(Pending {
        message_id,
        operation: Operation::External,
        request: request.encode_to_vec(),
        intent: Intent::default(),
        added: vec![own.clone()],
        removed: vec![own],
        proposals: Vec::new(),
        accepted: None,
    });
    records::put_group(step, &record)?;
    Ok(record)
}

/// Names who signed a GroupInfo that is of another policy.
fn signed_by(error: CoreError, mls_group: &MlsGroup, signer: u32) -> CoreError {
    let CoreError::OtherPolicy(differs) = error else {
        return error;
    };
    let member = mls_group.member_at(LeafNodeIndex::new(signer));
    let person = member.and_then(|m| person_of(&m.credential, &m.signature_key).ok());
    let signer = person.map_or_else(|| "nobody known".into(), |p| p.device_uri());
    CoreError::OtherPolicy(format!("{differs}; signed by {signer}"))
}

/// The external Commit was accepted at `seq`: this device is a member again, and what came before stays unread.
pub fn accepted(record: &mut GroupRecord, seq: u64) {
    record.state = GroupState::Active;
    record.epoch_seq = seq;
    record.rejoined_seq = seq;
    record.trouble = None;
    record.repair = false;
    record.leaves = false;
    record.pending = None;
}
