//! What a member refuses in a Commit: only what every member of the epoch sees alike. Clocks, pinned roots and the network never cause a refusal; the
//! authorities that the group's own policy lists do.

use std::collections::BTreeSet;

use chancery_proto::{
    certificate,
    commit_info::{CommitInfo, MessageData},
    mutants::{self, Mutant},
};
use openmls::prelude::*;

use super::{
    Context, CoreError,
    group::policy_of,
    identity::{certificate_of, members, person_of},
    records::Person,
};

/// What a Commit does, as found in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Devices that get a leaf.
    pub added: Vec<Person>,
    /// Devices that lose theirs.
    pub removed: Vec<Person>,
    /// Devices of new leaves whose certificate no pinned root of this device ever signed: merged all the same, and marked.
    pub distrusted: Vec<Person>,
    /// Devices of new leaves whose certificate is genuine and was not valid at the entry's time.
    pub ended: Vec<Person>,
    /// As the committer says.
    pub info: CommitInfo,
}

/// Refuses for a reason that all members see alike.
///
/// # Errors
/// Always.
pub(super) fn refuse<T>(why: &str) -> Result<T, CoreError> {
    Err(CoreError::Malformed(why.to_owned()))
}

/// Checks a staged Commit against its CommitInfo and the allowed proposals. `at` is the entry's time, Unix seconds.
///
/// # Errors
/// Why it must not be merged.
pub fn commit(
    context: Context<'_>,
    group: &MlsGroup,
    staged: &StagedCommit,
    sender: &Sender,
    data: &MessageData,
    at: i64,
) -> Result<Change, CoreError> {
    let Some(info) = data.commit_info.clone() else {
        return refuse("a Commit without CommitInfo");
    };
    let external = matches!(sender, Sender::NewMemberCommit);
    let (mut added, mut removed, mut new_leaves) = (Vec::new(), Vec::new(), Vec::new());
    for queued in staged.queued_proposals() {
        match queued.proposal() {
            Proposal::Add(add) if !external => {
                let leaf = add.key_package().leaf_node();
                added.push(person_of(
                    leaf.credential(),
                    leaf.signature_key().as_slice(),
                )?);
                new_leaves.push(leaf);
            }
            Proposal::Remove(remove) => removed.push(person_at(group, remove.removed())?),
            Proposal::Update(update) if !external => {
                let Sender::Member(index) = queued.sender() else {
                    return refuse("an Update from outside");
                };
                same_person(group, *index, update.leaf_node())?;
                new_leaves.push(update.leaf_node());
            }
            Proposal::ExternalInit(_) if external => {}
            other => return refuse(not_allowed(other)),
        }
    }
    if let Some(leaf) = staged.update_path_leaf_node() {
        match sender {
            Sender::NewMemberCommit => {
                added.push(person_of(
                    leaf.credential(),
                    leaf.signature_key().as_slice(),
                )?);
            }
            Sender::Member(index) => same_person(group, *index, leaf)?,
            _ => return refuse("a Commit from outside"),
        }
        new_leaves.push(leaf);
    }
    if already_in(group, &added, &removed) {
        return refuse("a device is added twice");
    }
    if external && removed.iter().any(|p| !added.contains(p)) {
        return refuse("an external Commit removes another device");
    }
    if members(added.clone()) != info.added
        || members(removed.clone()) != info.removed
        || added.len() != info.added.len()
    {
        return refuse("the CommitInfo is not what the Commit does");
    }
    if staged.group_context().extensions() != group.extensions() {
        return refuse("the policy changes without a proposal");
    }
    let between = info.intermediates()?;
    let (mut distrusted, mut ended) = (Vec::new(), Vec::new());
    for leaf in new_leaves {
        authority(group, leaf, &between)?;
        let credential = leaf.credential();
        let person = || person_of(credential, leaf.signature_key().as_slice());
        if context.trust.vouched(credential, context.now).is_err() {
            distrusted.push(person()?);
        } else if context.trust.verify(credential, at).is_err() {
            ended.push(person()?);
        }
    }
    Ok(Change {
        added,
        removed,
        distrusted,
        ended,
        info,
    })
}

/// Was the leaf's certificate signed by one of the authorities that the policy lists for its domain, or by an intermediate of `between` that one of them
/// signed? A domain that is not listed is not judged, and a certificate that is in the tree was judged when it came.
///
/// # Errors
/// By nobody of them.
pub(super) fn authority(
    group: &MlsGroup,
    leaf: &LeafNode,
    between: &[Vec<u8>],
) -> Result<(), CoreError> {
    if mutants::is_on(Mutant::ForeignAuthorityTaken) {
        return Ok(());
    }
    let certificate = certificate_of(leaf.credential())?;
    let domain = person_of(leaf.credential(), leaf.signature_key().as_slice())?.domain;
    let authorities = policy_of(group.extensions())?.authorities()?;
    let Some(keys) = authorities.get(&domain) else {
        return Ok(());
    };
    if certificate::signed_below(&certificate, between, keys).is_ok()
        || group.members().any(|m| m.credential == *leaf.credential())
    {
        return Ok(());
    }
    refuse("a leaf that no authority of its domain signed")
}

/// A proposal's type as RFC 9420 section 12.1 names it.
pub(super) fn kind(proposal: &Proposal) -> &'static str {
    match proposal {
        Proposal::Add(_) => "add",
        Proposal::Update(_) => "update",
        Proposal::Remove(_) => "remove",
        Proposal::PreSharedKey(_) => "psk",
        Proposal::ReInit(_) => "reinit",
        Proposal::ExternalInit(_) => "external_init",
        Proposal::GroupContextExtensions(_) => "group_context_extensions",
        Proposal::SelfRemove => "self_remove",
        Proposal::Custom(_) => "a proposal of an unknown type",
    }
}

/// Why a proposal stands in no Commit, whoever makes it.
pub(super) fn not_allowed(proposal: &Proposal) -> &'static str {
    match proposal {
        Proposal::GroupContextExtensions(_) => "the policy names nobody who may change it",
        _ => "a proposal that this version does not allow",
    }
}

/// Whether one of those that are added is in, and stays in.
fn already_in(group: &MlsGroup, added: &[Person], removed: &[Person]) -> bool {
    let added: BTreeSet<&Person> = added.iter().filter(|p| !removed.contains(p)).collect();
    let is_added = |m: Member| {
        person_of(&m.credential, &m.signature_key).is_ok_and(|person| added.contains(&person))
    };
    !added.is_empty() && group.members().any(is_added)
}

/// Who is at a leaf of the current epoch.
///
/// # Errors
/// The leaf is blank.
pub(super) fn person_at(group: &MlsGroup, index: LeafNodeIndex) -> Result<Person, CoreError> {
    let member = group
        .member_at(index)
        .ok_or_else(|| CoreError::Malformed("a Remove of a blank leaf".into()))?;
    person_of(&member.credential, &member.signature_key)
}

/// A leaf may get new keys and a new certificate, never another user or device.
///
/// # Errors
/// It gets one, or it was blank.
pub(super) fn same_person(
    group: &MlsGroup,
    index: LeafNodeIndex,
    leaf: &LeafNode,
) -> Result<(), CoreError> {
    let now = person_of(leaf.credential(), leaf.signature_key().as_slice())?;
    if person_at(group, index)? != now {
        return refuse("a leaf changes its user or device");
    }
    Ok(())
}

/// The intermediates that this device knows of a leaf's domain.
pub(super) fn intermediates(context: Context<'_>, leaf: &LeafNode) -> Vec<Vec<u8>> {
    let person = person_of(leaf.credential(), leaf.signature_key().as_slice());
    person.map_or_else(|_| Vec::new(), |p| context.trust.intermediates(&p.domain))
}
