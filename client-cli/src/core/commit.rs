//! Building a Commit with its CommitInfo, and an application message. What is built is kept before it is sent.

use std::collections::BTreeSet;

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::{CommitBundle, SendMessageRequest, SubmitCommitRequest},
    key_package,
    mutants::{self, Mutant},
};
use openmls::prelude::{tls_codec::Deserialize as _, *};
use prost::Message as _;

use super::{
    Context, CoreError, group, guarded,
    identity::{members, person_of},
    leaves, mls,
    outbox::{self, Outgoing},
    records::{self, GroupName, GroupRecord, GroupState, Intent, Operation, Pending, Person},
};
use crate::store::Step;

/// What a Commit will really do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Devices that get a leaf.
    pub added: Vec<Person>,
    /// Devices that lose theirs.
    pub removed: Vec<Person>,
    /// Devices whose KeyPackage cannot be used, with the reason.
    pub unusable: Vec<(Option<Person>, String)>,
    /// Devices that lose their leaf because nobody can encrypt to it, with the reason; they are among `removed` too.
    pub unreachable: Vec<(Person, String)>,
}

/// The record of a group that this device may act in.
///
/// # Errors
/// Unknown, not active, or one that holds a leaf that is not trusted.
pub fn active(step: &Step<'_>, name: &GroupName) -> Result<GroupRecord, CoreError> {
    let record = records::known(step, name)?;
    if record.state != GroupState::Active {
        return Err(CoreError::State(record.state.name().to_owned()));
    }
    Ok(record)
}

/// A KeyPackage that this device is willing to add: it keeps the rules, validates, says who it is, and its certificate
/// is trusted. What is not usable is named as far as it can be read.
fn usable(
    step: &Step<'_>,
    context: Context<'_>,
    suite: Ciphersuite,
    bytes: &[u8],
) -> Result<(Person, KeyPackage), (Option<Person>, String)> {
    let named = key_package::KeyPackage::parse(bytes, bytes.len())
        .ok()
        .and_then(|package| leaves::claims_to_be(&package.leaf));
    let unusable = |why: String| (named.clone(), why);
    if !mutants::is_on(Mutant::ClaimedKeyPackagesUnchecked) {
        leaves::check_key_package(bytes).map_err(unusable)?;
    }
    let body = MlsMessageIn::tls_deserialize_exact(bytes)
        .map_err(|error| unusable(error.to_string()))?
        .extract();
    let MlsMessageBodyIn::KeyPackage(package) = body else {
        return Err(unusable("not a KeyPackage".into()));
    };
    let package = package
        .validate(step.provider().crypto(), ProtocolVersion::Mls10)
        .map_err(|error| unusable(error.to_string()))?;
    let leaf = package.leaf_node();
    let person = person_of(leaf.credential(), leaf.signature_key().as_slice())
        .map_err(|error| unusable(error.to_string()))?;
    context
        .trust
        .verify(leaf.credential(), context.now)
        .map_err(|error| unusable(error.to_string()))?;
    if package.ciphersuite() != suite {
        return Err(unusable("its KeyPackage is of another suite".into()));
    }
    Ok((person, package))
}

/// What the proposals that others sent already do: a Commit takes them in by reference.
fn queued(mls_group: &MlsGroup, roster: &[(LeafNodeIndex, Person)]) -> Result<Plan, CoreError> {
    let mut plan = Plan::default();
    for queued in mls_group.pending_proposals() {
        match queued.proposal() {
            Proposal::Add(add) => {
                let leaf = add.key_package().leaf_node();
                plan.added.push(person_of(
                    leaf.credential(),
                    leaf.signature_key().as_slice(),
                )?);
            }
            Proposal::Remove(remove) => {
                let found = roster.iter().find(|(index, _)| *index == remove.removed());
                plan.removed.extend(found.map(|(_, person)| person.clone()));
            }
            _ => {}
        }
    }
    Ok(plan)
}

/// Builds the Commit for an intent on the group as it is now, and keeps it as pending.
///
/// # Errors
/// [`CoreError::Nothing`] when the group already is as intended; openmls; the store.
pub fn stage(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    intent: &Intent,
    message_id: [u8; 16],
) -> Result<Plan, CoreError> {
    let mut mls_group = group::load(step, &record.name)?;
    let roster = group::roster(&mls_group)?;
    let mut plan = queued(&mls_group, &roster)?;
    let by_reference = plan.clone();
    let mut packages = Vec::new();
    let members: BTreeSet<&Person> = roster.iter().map(|(_, person)| person).collect();
    for bytes in &intent.key_packages {
        let suite = mls_group.ciphersuite();
        let looked_at = guarded(|| Ok(usable(step, context, suite, bytes)));
        match looked_at.unwrap_or_else(|error| Err((None, error.to_string()))) {
            Ok((person, _)) if members.contains(&person) => {}
            Ok((person, _)) if plan.added.contains(&person) => {}
            Ok((person, package)) => {
                plan.added.push(person);
                packages.push(package);
            }
            Err(unusable) => plan.unusable.push(unusable),
        }
    }
    let own = mls_group.own_leaf_index();
    let unreachable = leaves::unreachable(&mls_group)?;
    let leaves: Vec<_> = roster
        .iter()
        .filter(|(index, person)| {
            *index != own
                && !by_reference.removed.contains(person)
                && (intent.remove.contains(person)
                    || record.leaving.contains(person)
                    || record.revoked.contains(person)
                    || unreachable.iter().any(|(at, _)| at == index))
        })
        .collect();
    let why = |at: &LeafNodeIndex| unreachable.iter().find(|(index, _)| index == at);
    let cut_off = leaves.iter().filter_map(|(index, person)| {
        let (_, fault) = why(index)?;
        let why = format!("removed, since nobody can encrypt to its leaf: the key {fault}");
        Some((person.clone(), why))
    });
    plan.unreachable = cut_off.collect();
    let removed = leaves.iter().map(|(_, person)| person.clone());
    plan.removed.extend(removed);
    let proposed = mls_group.pending_proposals().next().is_some();
    if packages.is_empty() && leaves.is_empty() && !intent.update && !proposed {
        return Err(match plan.unusable.first() {
            Some((person, why)) => {
                let device = person.as_ref().map_or_else(String::new, Person::device_uri);
                CoreError::Unusable(format!("the KeyPackage of {device} cannot be used: {why}"))
            }
            None => CoreError::Nothing,
        });
    }
    let info = commit_info(record, &plan, intent);
    let aad = MessageData {
        message_id: Some(message_id),
        commit_info: Some(info),
    };
    mls_group.set_aad(aad.encode());
    let before = mls_group.export_ratchet_tree();
    let key = context.identity.leaf_key(mls_group.ciphersuite())?;
    let provider = step.provider();
    let bundle = mls_group
        .commit_builder()
        .propose_adds(packages)
        .propose_removals(leaves.iter().map(|(index, _)| *index))
        .force_self_update(intent.update)
        .load_psks(provider.storage())
        .map_err(mls)?
        .create_group_info(true)
        .build(provider.rand(), provider.crypto(), &key, |_| true)
        .map_err(mls)?
        .stage_commit(provider)
        .map_err(mls)?;
    let old = group::tree_of(&before)?;
    let after = mls_group
        .pending_commit()
        .ok_or_else(|| CoreError::Mls("no pending Commit".into()))?
        .export_ratchet_tree(provider.crypto(), before)
        .map_err(mls)?
        .ok_or_else(|| CoreError::Mls("no tree of the pending Commit".into()))?;
    let tree = group::tree_of(&after)?.update_since(&old);
    let request = SubmitCommitRequest {
        group: Some(record.name.to_ref()),
        epoch_seq: record.epoch_seq,
        bundles: vec![bundle_of(bundle, message_id, tree)?],
    };
    record.pending = Some(Pending {
        message_id,
        operation: Operation::Commit,
        request: request.encode_to_vec(),
        intent: intent.clone(),
        added: plan.added.clone(),
        removed: plan.removed.clone(),
        accepted: None,
    });
    record.claim = None;
    records::put_group(step, record)?;
    group::keep(step, mls_group);
    Ok(plan)
}

fn commit_info(record: &GroupRecord, plan: &Plan, intent: &Intent) -> CommitInfo {
    let mut left_out = intent.left_out.clone();
    left_out.extend(
        plan.unusable
            .iter()
            .filter_map(|(person, _)| person.clone()),
    );
    left_out.retain(|person| !plan.added.contains(person));
    CommitInfo {
        added: members(plan.added.clone()),
        removed: members(plan.removed.clone()),
        left_out: members(left_out),
        proposals: record.proposals.clone(),
        seen_seq: record.head_seq,
        seen_chain: record.chain,
        extensions: Vec::new(),
    }
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
    if let Some(person) = record.distrusted.first() {
        return Err(CoreError::Distrusted(format!(
            "the group holds {}",
            person.device_uri()
        )));
    }
    let mut mls_group = group::load(step, &record.name)?;
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
