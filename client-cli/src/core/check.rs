//! What a member refuses in a Commit: only what every member of the epoch sees alike. Clocks, anchors and the network never cause a refusal.

use std::collections::BTreeSet;

use chancery_proto::commit_info::{CommitInfo, MessageData};
use openmls::prelude::*;

use super::{
    Context, CoreError,
    group::policy_of,
    identity::{members, person_of},
    records::Person,
};

/// What a Commit does, as found in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Devices that get a leaf.
    pub added: Vec<Person>,
    /// Devices that lose theirs.
    pub removed: Vec<Person>,
    /// New leaves whose certificate does not verify against the pinned roots: merged all the same, and marked.
    pub distrusted: Vec<Person>,
    /// As the committer says.
    pub info: CommitInfo,
}

fn refuse<T>(why: &str) -> Result<T, CoreError> {
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
            Proposal::GroupContextExtensions(_) if !external => {
                return refuse("the policy names nobody who may change it");
            }
            _ => return refuse("a proposal that this version does not allow"),
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
    if policy_of(staged.group_context().extensions())? != policy_of(group.extensions())? {
        return refuse("the policy changes without a proposal");
    }
    let distrusted = new_leaves
        .iter()
        .filter(|leaf| context.trust.verify(leaf.credential(), at).is_err())
        .map(|leaf| person_of(leaf.credential(), leaf.signature_key().as_slice()))
        .collect::<Result<_, _>>()?;
    Ok(Change {
        added,
        removed,
        distrusted,
        info,
    })
}

/// Whether one of those that are added is in, and stays in.
fn already_in(group: &MlsGroup, added: &[Person], removed: &[Person]) -> bool {
    let added: BTreeSet<&Person> = added.iter().filter(|p| !removed.contains(p)).collect();
    let is_added = |m: Member| {
        person_of(&m.credential, &m.signature_key).is_ok_and(|person| added.contains(&person))
    };
    !added.is_empty() && group.members().any(is_added)
}

fn person_at(group: &MlsGroup, index: LeafNodeIndex) -> Result<Person, CoreError> {
    let member = group
        .member_at(index)
        .ok_or_else(|| CoreError::Malformed("a Remove of a blank leaf".into()))?;
    person_of(&member.credential, &member.signature_key)
}

/// A leaf may get new keys and a new certificate, never another user or device.
fn same_person(group: &MlsGroup, index: LeafNodeIndex, leaf: &LeafNode) -> Result<(), CoreError> {
    let now = person_of(leaf.credential(), leaf.signature_key().as_slice())?;
    if person_at(group, index)? != now {
        return refuse("a leaf changes its user or device");
    }
    Ok(())
}
