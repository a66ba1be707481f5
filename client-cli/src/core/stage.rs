//! From an intent to a Commit that is kept as pending: which proposals it takes in, what it adds and removes, and the check that everybody else makes of it.

use std::collections::BTreeSet;

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::SubmitCommitRequest,
    mutants::{self, Mutant},
};
use openmls::prelude::*;
use prost::Message as _;

use super::{
    Context, CoreError, check,
    commit::bundle_of,
    group, guarded,
    identity::members,
    leaves, mls,
    plan::{Plan, usable},
    proposals::{self, Received},
    records::{self, GroupRecord, Intent, Operation, Pending, Person},
};
use crate::store::Step;

/// So many proposals are tried one after the other when a Commit cannot be made with all of them.
const TRIALS: usize = 16;

/// Builds the Commit for an intent on the group as it is now, and keeps it as pending. What others proposed is taken in as far as a Commit can be made with
/// it; what stands in the way is left out, in the end all of it.
///
/// # Errors
/// [`CoreError::Nothing`] when the group already is as intended; openmls; what [`check::commit`] refuses; the store.
pub fn stage(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    intent: &Intent,
    message_id: [u8; 16],
) -> Result<Plan, CoreError> {
    let offered = group::look(step, &record.name, |mls_group| {
        proposals::to_commit(step, record, intent, mls_group, &group::roster(mls_group)?)
    })?;
    let build = |proposals: &[Received]| {
        step.attempt(|| guarded(|| build(step, context, record, intent, message_id, proposals)))
    };
    let (built, refused) = match build(&offered) {
        Err(CoreError::Mls(_) | CoreError::Malformed(_)) if may_leave_out(&offered) => {
            let (good, refused) = apart(&offered, |proposals| {
                let trial = step.attempt(|| {
                    guarded(|| build_only(step, context, record, intent, message_id, proposals))
                });
                matches!(trial, Err(CoreError::Nothing))
            });
            (build(&good)?, refused)
        }
        built => (built?, Vec::new()),
    };
    proposals::refuse(step, record, &refused, "no Commit can be made with it")?;
    let Built { plan, pending } = built;
    record.pending = Some(pending);
    record.claim = None;
    records::put_group(step, record)?;
    Ok(plan)
}

fn may_leave_out(offered: &[Received]) -> bool {
    !offered.is_empty()
        && !mutants::is_on(Mutant::ProposalsUnjudged)
        && !mutants::is_on(Mutant::ProposalConflictsKept)
}

/// Proposals that fit together, and the seqs of those that do not. Only [`TRIALS`] are tried, and of more than that none is taken.
fn apart(offered: &[Received], fits: impl Fn(&[Received]) -> bool) -> (Vec<Received>, Vec<u64>) {
    let (mut good, mut refused) = (Vec::new(), Vec::new());
    let tried = if offered.len() > TRIALS { &[] } else { offered };
    for received in tried {
        good.push(received.clone());
        if !fits(&good) {
            refused.extend(good.pop().map(|received| received.seq));
        }
    }
    (good, refused)
}

/// Builds a Commit and always undoes it: [`CoreError::Nothing`] says that it can be built.
fn build_only(
    step: &Step<'_>,
    context: Context<'_>,
    record: &GroupRecord,
    intent: &Intent,
    message_id: [u8; 16],
    proposals: &[Received],
) -> Result<(), CoreError> {
    build(step, context, record, intent, message_id, proposals)?;
    Err(CoreError::Nothing)
}

struct Built {
    plan: Plan,
    pending: Pending,
}

fn build(
    step: &Step<'_>,
    context: Context<'_>,
    record: &GroupRecord,
    intent: &Intent,
    message_id: [u8; 16],
    proposals: &[Received],
) -> Result<Built, CoreError> {
    let mut mls_group = group::load(step, &record.name)?;
    let roster = group::roster(&mls_group)?;
    let mut plan = proposals::effect(proposals, &roster)?;
    let by_reference = plan.removed.clone();
    let packages = packages(step, context, &mls_group, &roster, intent, &mut plan);
    let own = mls_group.own_leaf_index();
    let unreachable = leaves::unreachable(&mls_group)?;
    let fault_of = |at: &LeafNodeIndex| unreachable.iter().find(|(index, _)| index == at);
    let leaves: Vec<_> = roster
        .iter()
        .filter(|(index, person)| {
            *index != own
                && !by_reference.contains(person)
                && (intent.remove.contains(person)
                    || record.is_to_go(person)
                    || fault_of(index).is_some())
        })
        .collect();
    let cut_off = leaves.iter().filter_map(|(index, person)| {
        let (_, fault) = fault_of(index)?;
        let why = format!("removed, since nobody can encrypt to its leaf: the key {fault}");
        Some((person.clone(), why))
    });
    plan.unreachable = cut_off.collect();
    let removed = leaves.iter().map(|(_, person)| person.clone());
    plan.removed.extend(removed);
    if packages.is_empty() && leaves.is_empty() && !intent.update && proposals.is_empty() {
        return Err(match plan.unusable.first() {
            Some((person, why)) => {
                let device = person.as_ref().map_or_else(String::new, Person::device_uri);
                CoreError::Unusable(format!("the KeyPackage of {device} cannot be used: {why}"))
            }
            None => CoreError::Nothing,
        });
    }
    let mut info = commit_info(record, &plan, intent, proposals);
    let added = packages.iter().map(KeyPackage::leaf_node);
    carry_intermediates(
        context,
        &mls_group,
        proposals::leaves(proposals).chain(added),
        &mut info,
    );
    let data = MessageData {
        message_id: Some(message_id),
        commit_info: Some(info),
    };
    proposals::hand_over(step, &mut mls_group, proposals)?;
    mls_group.set_aad(data.encode());
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
    let staged = mls_group
        .pending_commit()
        .ok_or_else(|| CoreError::Mls("no pending Commit".into()))?;
    if !mutants::is_on(Mutant::OwnCommitUnchecked) {
        check::commit(
            context,
            &mls_group,
            staged,
            &Sender::Member(own),
            &data,
            context.now,
        )?;
    }
    let old = group::tree_of(&before)?;
    let after = staged
        .export_ratchet_tree(provider.crypto(), before)
        .map_err(mls)?
        .ok_or_else(|| CoreError::Mls("no tree of the pending Commit".into()))?;
    let tree = group::tree_of(&after)?.update_since(&old);
    let request = SubmitCommitRequest {
        group: Some(record.name.to_ref()),
        epoch_seq: record.epoch_seq,
        bundles: vec![bundle_of(bundle, message_id, tree)?],
    };
    let pending = Pending {
        message_id,
        operation: Operation::Commit,
        request: request.encode_to_vec(),
        intent: intent.clone(),
        added: plan.added.clone(),
        removed: plan.removed.clone(),
        proposals: proposals.iter().map(|received| received.seq).collect(),
        accepted: None,
    };
    group::keep(step, mls_group);
    Ok(Built { plan, pending })
}

/// The KeyPackages that the intent adds: of devices that are not in yet, nor added by a proposal. What cannot be used is noted in the plan.
fn packages(
    step: &Step<'_>,
    context: Context<'_>,
    mls_group: &MlsGroup,
    roster: &[(LeafNodeIndex, Person)],
    intent: &Intent,
    plan: &mut Plan,
) -> Vec<KeyPackage> {
    let mut packages = Vec::new();
    let members: BTreeSet<&Person> = roster.iter().map(|(_, person)| person).collect();
    for bytes in &intent.key_packages {
        let suite = mls_group.ciphersuite();
        let looked_at = guarded(|| Ok(usable(step, context, suite, bytes)));
        match looked_at.unwrap_or_else(|error| Err((None, error.to_string()))) {
            Ok((person, _)) if members.contains(&person) => {}
            Ok((person, _)) if plan.added.contains(&person) => {}
            Ok((person, package)) => {
                let leaf = package.leaf_node();
                match check::authority(mls_group, leaf, &check::intermediates(context, leaf)) {
                    Ok(()) => {
                        plan.added.push(person);
                        packages.push(package);
                    }
                    Err(error) => plan.unusable.push((Some(person), error.to_string())),
                }
            }
            Err(unusable) => plan.unusable.push(unusable),
        }
    }
    packages
}

/// Puts into the CommitInfo what lies between new leaves and the authorities of the policy, where the policy does not list their signers themselves.
fn carry_intermediates<'l>(
    context: Context<'_>,
    mls_group: &MlsGroup,
    leaves: impl Iterator<Item = &'l LeafNode>,
    info: &mut CommitInfo,
) {
    let mut carried = BTreeSet::new();
    for leaf in leaves {
        if check::authority(mls_group, leaf, &[]).is_err() {
            carried.extend(check::intermediates(context, leaf));
        }
    }
    info.put_intermediates(carried.iter().map(Vec::as_slice));
}

fn commit_info(
    record: &GroupRecord,
    plan: &Plan,
    intent: &Intent,
    proposals: &[Received],
) -> CommitInfo {
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
        proposals: proposals.iter().map(|received| received.seq).collect(),
        seen_seq: record.head_seq,
        seen_chain: record.chain,
        extensions: Vec::new(),
    }
}
