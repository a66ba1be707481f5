//! Coming into a group: by Welcome, or by an external Commit after this device lost its state.

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::{EntryKind, GetGroupInfoResponse, SubmitCommitRequest, Welcome as WelcomeFrame},
    mutants::{self, Mutant},
};
use openmls::prelude::{tls_codec::Deserialize as _, *};
use prost::Message as _;

use super::{
    Context, CoreError, commit, group,
    identity::{members, person_of},
    mls, proposals,
    records::{
        self, GroupName, GroupRecord, GroupState, Intent, JournalEntry, Operation, Pending, Person,
    },
};
use crate::store::{Step, StoreError};

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

/// Whether this Welcome was used already, or opens nothing that this device does not have. A device without a live
/// state of the group has read on and could use nothing of what came after: any Welcome that is newer than its
/// membership is for it.
///
/// # Errors
/// The store.
pub fn known(step: &Step<'_>, name: &GroupName, seq: u64) -> Result<bool, CoreError> {
    let Some(record) = records::group(step, name)? else {
        return Ok(false);
    };
    let lost = match record.state {
        GroupState::Removed => true,
        GroupState::NeedsRejoin(_) => !mutants::is_on(Mutant::WelcomeKnownByHead),
        _ => false,
    };
    let joined = record.joined_seq.max(record.rejoined_seq) >= seq;
    Ok(joined || (!lost && record.head_seq >= seq))
}

/// What a later membership keeps of an earlier one's record: what the server is held to, and what is still to be said.
fn carry_over(record: GroupRecord, earlier: Option<GroupRecord>) -> GroupRecord {
    // A group that was stopped has nothing that the server could be held to.
    let Some(earlier) = earlier.filter(|earlier| !earlier.state.ended()) else {
        return record;
    };
    GroupRecord {
        promised: earlier.promised,
        settled_seq: earlier.settled_seq,
        resend: earlier.resend,
        copies: earlier.copies,
        ..record
    }
}

/// openmls' refusal of a Welcome, apart from the store's: that one may pass.
fn refused(error: WelcomeError<StoreError>) -> CoreError {
    match error {
        WelcomeError::StorageError(error) => error.into(),
        error => mls(error),
    }
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
            .map_err(refused)?
            .with_ratchet_tree(tree)
            .replace_old_group()
            .skip_lifetime_validation()
            .build()
            .map_err(refused)?;
    let policy = group::policy_of(staged.group_context().extensions())?;
    if staged.group_context().group_id().as_slice() != name.id || policy.home_domain != name.domain
    {
        return Err(CoreError::Malformed("a Welcome into another group".into()));
    }
    let mut mls_group = staged.into_group(step.provider()).map_err(refused)?;
    mls_group.set_configuration(
        step.provider().storage(),
        &group::join_config(policy.past_epochs),
    )?;
    group::roster(&mls_group)?;
    let earlier = records::group(step, &name)?;
    let record = GroupRecord {
        epoch: mls_group.epoch().as_u64(),
        epoch_seq: frame.epoch_seq,
        distrusted: distrusted(context, &mls_group)?,
        ..GroupRecord::new(name, GroupState::Active, frame.seq, chain32(&frame.chain)?)
    };
    let mut record = carry_over(record, earlier);
    group::remember_extensions(&mut record, &mls_group)?;
    proposals::forget(step, &mut record)?;
    records::put_group(step, &record)?;
    records::put_welcome(step, &record.name, &frame.encode_to_vec())?;
    Ok(record)
}

/// Puts a Welcome aside that can never be used: the group is one that this device is in the roster of, without a state,
/// and the journal says why. A group that goes on here, or was stopped, stays as it is.
///
/// # Errors
/// The store.
pub fn put_aside(
    step: &Step<'_>,
    frame: &WelcomeFrame,
    name: &GroupName,
    why: &str,
) -> Result<(), CoreError> {
    let why = format!("its Welcome cannot be used: {why}");
    let earlier = records::group(step, name)?;
    let goes_on = |r: &GroupRecord| {
        r.state.ended() || matches!(r.state, GroupState::Active | GroupState::Creating)
    };
    // Without a chain value there is no place to read on from; the server's list of groups leads back in.
    let (false, Ok(chain)) = (earlier.as_ref().is_some_and(goes_on), chain32(&frame.chain)) else {
        return Ok(());
    };
    let state = GroupState::NeedsRejoin(why.clone());
    let record = GroupRecord {
        epoch_seq: frame.epoch_seq,
        ..GroupRecord::new(name.clone(), state, frame.seq, chain)
    };
    records::put_group(step, &carry_over(record, earlier))?;
    let written = JournalEntry {
        seq: frame.seq,
        kind: EntryKind::Commit as u32,
        epoch_seq: frame.epoch_seq,
        chain,
        skipped: Some(why),
        ..JournalEntry::default()
    };
    Ok(records::put_entry(step, name, &written)?)
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
