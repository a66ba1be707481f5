//! What a server can see of GroupInfo, tree, and external Commit without keys, held against the epoch before. All of it is decided before
//! an epoch is given away: afterwards only the members could refuse, and each refusal would cost the group an epoch.

use std::collections::BTreeMap;

use chancery_proto::{
    framing::ExternalCommit,
    group_info::GroupInfo,
    leaf::LeafNode,
    mutants::{self, Mutant},
    policy::{ExternalJoin, Policy},
    suite::Suite,
};

use crate::ordering::group::{DeviceKey, Rejection};

/// The highest MLS epoch number that a new group may begin with: every later epoch fits a signed 64-bit integer.
pub const FIRST_EPOCH_MAX: u64 = u32::MAX as u64;

/// Leaves that a Commit writes, by leaf index; `None` is a leaf that it blanks.
pub type NewLeaves = BTreeMap<u32, Option<LeafNode>>;

/// What comes with a Commit, as far as it can be read without keys.
#[derive(Debug)]
pub struct CommitContent<'c> {
    /// The domain that orders the group.
    pub home_domain: &'c str,
    /// The group.
    pub group: &'c [u8],
    /// The epoch that the Commit was made in, from the framing.
    pub epoch: u64,
    /// The GroupInfo of the epoch that it begins.
    pub info: &'c GroupInfo,
    /// The stored GroupInfo of the epoch that it was made in; absent where there is no such epoch.
    pub before: Option<&'c GroupInfo>,
    /// The tree with the Commit's changes hashes to the GroupInfo's tree hash.
    pub tree_fits: bool,
    /// The leaf of the GroupInfo's signer in the new tree.
    pub signer: Option<&'c LeafNode>,
    /// Of a Commit from outside.
    pub external: Option<ExternalContent<'c>>,
}

/// What an external Commit (RFC 9420 section 12.4.3.2) shows, and what it must fit.
#[derive(Debug)]
pub struct ExternalContent<'c> {
    /// The Commit.
    pub commit: &'c ExternalCommit,
    /// The leaf index of the caller in the tree before, if it is a member.
    pub own_leaf: Option<u32>,
    /// The leaves that the tree update writes.
    pub leaves: &'c NewLeaves,
    /// How many leaves left of the new one are filled in the tree before.
    pub filled_left: u32,
}

impl CommitContent<'_> {
    /// What is wrong with it, the first thing only.
    pub fn fault(&self) -> Option<Rejection> {
        self.check().err()
    }

    fn check(&self) -> Result<(), Rejection> {
        let info = self.info;
        if info.group_id != self.group || Some(info.epoch) != self.epoch.checked_add(1) {
            return Err(info_mismatch(
                "the GroupInfo is of another group, or not of the next epoch",
            ));
        }
        if self.before.is_some_and(|before| before.suite != info.suite) {
            return Err(info_mismatch("the GroupInfo is of another cipher suite"));
        }
        let policy = check_policy(self.home_domain, info, self.before)?;
        check_external_pub(info, &policy)?;
        if !self.tree_fits {
            return Err(tree_hash_mismatch());
        }
        check_signature(info, self.signer)?;
        match &self.external {
            Some(external) => external.check(self.group, self.epoch, self.before),
            None => Ok(()),
        }
    }
}

fn info_mismatch(why: &'static str) -> Rejection {
    Rejection::GroupInfoMismatch(why)
}

/// The refusal of a tree that is not the GroupInfo's.
pub fn tree_hash_mismatch() -> Rejection {
    Rejection::TreeMismatch("the tree does not hash to the GroupInfo's tree hash")
}

/// The policy can be read, is of this domain, and is the one that the group was made with: version 1 lets nobody change it.
fn check_policy(
    home_domain: &str,
    info: &GroupInfo,
    before: Option<&GroupInfo>,
) -> Result<Policy, Rejection> {
    let policy = info
        .policy()
        .map_err(|_| info_mismatch("the GroupInfo carries no policy that can be read"))?;
    if policy.home_domain != home_domain {
        return Err(info_mismatch("the policy names another home domain"));
    }
    let changed = before
        .and_then(|before| before.policy().ok())
        .is_some_and(|before| before != policy);
    if changed && !mutants::is_on(Mutant::ServerTakesChangedPolicy) {
        return Err(info_mismatch(
            "the policy is not the group's, and it names nobody who may change it",
        ));
    }
    Ok(policy)
}

/// Where the policy lets somebody in from outside, the GroupInfo holds the key that this takes.
fn check_external_pub(info: &GroupInfo, policy: &Policy) -> Result<(), Rejection> {
    if policy.external_join != ExternalJoin::None && info.external_pub.is_none() {
        return Err(info_mismatch(
            "the policy allows external joins, and the GroupInfo has no external_pub",
        ));
    }
    Ok(())
}

/// By the signer's leaf in the tree that the GroupInfo is of. Signatures of suites that are not known here are the members' to check.
fn check_signature(info: &GroupInfo, signer: Option<&LeafNode>) -> Result<(), Rejection> {
    if Suite::from_code(info.suite).is_none() || mutants::is_on(Mutant::GroupInfoUnverified) {
        return Ok(());
    }
    let Some(signer) = signer else {
        return Err(info_mismatch("the GroupInfo's signer has no leaf"));
    };
    if info.verify(&signer.signature_key) == Some(false) {
        return Err(info_mismatch(
            "the GroupInfo's signature does not verify with its signer's leaf",
        ));
    }
    Ok(())
}

/// Where an external Commit puts its leaf, as its tree update says.
pub fn place_of(leaf: &LeafNode, leaves: &NewLeaves) -> Option<u32> {
    let mut places = leaves.iter();
    let place = places.find(|(_, written)| written.as_ref() == Some(leaf));
    place.map(|(index, _)| *index)
}

impl ExternalContent<'_> {
    fn check(&self, group: &[u8], epoch: u64, before: Option<&GroupInfo>) -> Result<(), Rejection> {
        if mutants::is_on(Mutant::ExternalCommitUnread) {
            return Ok(());
        }
        let commit = self.commit;
        if commit.removes.as_slice() != self.own_leaf.as_slice() {
            return Err(Rejection::CommitInfo(
                "an external Commit removes exactly the caller's own old leaf, if it has one",
            ));
        }
        let Some(place) = place_of(&commit.leaf, self.leaves) else {
            return Err(Rejection::TreeMismatch(
                "the leaf of the external Commit is not in the tree",
            ));
        };
        self.check_place(place)?;
        // Without the epoch before, the Commit is stale, which weighs more.
        let Some(before) = before.filter(|before| before.epoch == epoch) else {
            return Ok(());
        };
        let Some(suite) = Suite::from_code(before.suite) else {
            return Ok(());
        };
        if !commit.leaf.verify(suite, Some((group, place))) {
            return Err(Rejection::CredentialInvalid(
                "the leaf of the external Commit is not signed for this group and place",
            ));
        }
        if !commit.verify(suite, &before.group_context) {
            return Err(Rejection::CredentialInvalid(
                "the external Commit's signature does not verify",
            ));
        }
        Ok(())
    }

    /// The leftmost leaf that is blank once the caller's old one is gone, and no other leaf is written.
    fn check_place(&self, place: u32) -> Result<(), Rejection> {
        let others = self.leaves.iter().any(|(index, leaf)| {
            let own = Some(*index) == self.own_leaf && leaf.is_none();
            *index != place && !own
        });
        if others {
            return Err(Rejection::TreeMismatch(
                "an external Commit writes other leaves than its caller's",
            ));
        }
        let own_is_left = self.own_leaf.is_some_and(|own| own < place);
        if own_is_left || self.filled_left != place {
            return Err(Rejection::TreeMismatch(
                "the leaf of the external Commit is not the leftmost blank one",
            ));
        }
        Ok(())
    }
}

/// What comes with a new group: a GroupInfo of this group and suite, whose tree holds its signer.
///
/// # Errors
/// `GROUP_INFO_MISMATCH`.
pub fn check_creation(
    home_domain: &str,
    (group, suite): (&[u8], u16),
    info: &GroupInfo,
    only_leaf: &LeafNode,
) -> Result<Policy, Rejection> {
    if info.group_id != group || info.suite != suite {
        return Err(info_mismatch(
            "the GroupInfo is of another group or cipher suite",
        ));
    }
    if info.epoch > FIRST_EPOCH_MAX {
        return Err(info_mismatch(
            "a new group begins with an epoch number of at most 32 bits",
        ));
    }
    let policy = check_policy(home_domain, info, None)?;
    check_external_pub(info, &policy)?;
    check_signature(info, Some(only_leaf).filter(|_| info.signer == 0))?;
    Ok(policy)
}

/// A member of the group as the roster has it: its device, and the key that its leaf was let in with, where that was kept.
pub type RosterKey = (DeviceKey, Option<Vec<u8>>);

/// A GroupInfo that is put in the place of the stored one of an epoch says all that the accepted Commit fixed, and its tree holds the
/// members of the group and nobody else, each with the key that it was let in with.
///
/// # Errors
/// `GROUP_INFO_MISMATCH`, `TREE_MISMATCH`.
pub fn check_repair(
    home_domain: &str,
    stored: &GroupInfo,
    info: &GroupInfo,
    roster: &[RosterKey],
    leaves: &BTreeMap<DeviceKey, LeafNode>,
) -> Result<(), Rejection> {
    if mutants::is_on(Mutant::RepairUncompared) {
        return Ok(());
    }
    if info.suite != stored.suite {
        return Err(info_mismatch("the GroupInfo is of another cipher suite"));
    }
    let policy = check_policy(home_domain, info, Some(stored))?;
    check_external_pub(info, &policy)?;
    let is_in = |(member, key): &RosterKey| {
        let leaf = leaves.get(member);
        leaf.is_some_and(|leaf| key.as_ref().is_none_or(|key| *key == leaf.signature_key))
    };
    if leaves.len() != roster.len() || !roster.iter().all(is_in) {
        return Err(Rejection::TreeMismatch(
            "the leaves of the tree are not those of the group's members",
        ));
    }
    Ok(())
}
