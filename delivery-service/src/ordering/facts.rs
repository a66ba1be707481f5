//! What a Commit is decided on. Reading differs between the service, the simulation, and the exploration; what the rows mean does not.

use std::collections::BTreeSet;

use chancery_proto::chain;
use uuid::Uuid;

use crate::ordering::group::{
    Added, Commit, CommitKind, DeviceKey, ExternalJoin, Head, Membership, Rejection, Removed,
};

/// A Commit as its request says it, read and held against the epoch that it was made in.
#[derive(Debug, Clone)]
pub struct CommitRequest {
    /// The committer.
    pub device: DeviceKey,
    /// Its user, from the token.
    pub user: Uuid,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// It comes from outside (RFC 9420 section 12.4.3.2).
    pub external: bool,
    /// A device whose signed introduction came with an external Commit and verifies.
    pub introducer: Option<DeviceKey>,
    /// The epoch that it was made in, from the framing.
    pub epoch: u64,
    /// The name of that epoch, from the request.
    pub epoch_seq: u64,
    /// CommitInfo's adds: device and user.
    pub added: Vec<(DeviceKey, Uuid)>,
    /// CommitInfo's removes: device and user.
    pub removed: Vec<(DeviceKey, Uuid)>,
    /// Seqs of the proposals that it takes by reference, each once.
    pub proposals: Vec<u64>,
    /// CommitInfo's `seen_seq`.
    pub seen_seq: u64,
    /// CommitInfo's `seen_chain`.
    pub seen_chain: [u8; 32],
    /// The KeyPackageRefs that the Welcomes name.
    pub welcomed: Vec<Vec<u8>>,
    /// Leaves that the Commit puts into the tree and whose source is a KeyPackage, as bytes.
    pub new_leaves: Vec<Vec<u8>>,
    /// `past_epochs` of the policy in its GroupInfo.
    pub past_epochs: u64,
    /// `external_join` of the policy in its GroupInfo.
    pub external_join: ExternalJoin,
    /// What is wrong with GroupInfo, tree, or external leaf; it is reported only if the epoch is current, since everything looks wrong
    /// from another epoch.
    pub fault: Option<Rejection>,
}

/// What the server knows of one device.
#[derive(Debug, Clone, Copy)]
pub struct KnownDevice {
    /// The device.
    pub key: DeviceKey,
    /// Its user.
    pub user: Uuid,
    /// It was revoked.
    pub revoked: bool,
}

/// A KeyPackage that a Welcome names.
#[derive(Debug, Clone)]
pub struct KnownPackage {
    /// Its KeyPackageRef.
    pub reference: Vec<u8>,
    /// Whose it is.
    pub owner: DeviceKey,
    /// The bytes of its leaf.
    pub leaf: Vec<u8>,
}

/// What was read for one Commit, under the lock of the group's head.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The added devices, as far as they are known.
    pub devices: Vec<KnownDevice>,
    /// Open memberships of the added and removed devices and of the introducer.
    pub members: Vec<(DeviceKey, Membership)>,
    /// Open memberships that are to end: revoked devices, and those that asked to leave.
    pub pending: Vec<(DeviceKey, Pending)>,
    /// The log's chain value at `seen_seq`, where there is such an entry.
    pub seen_chain: Option<[u8; 32]>,
    /// The Commit that began the epoch after the request's, where there is one.
    pub winner_seq: Option<u64>,
    /// The VOID entry that took the request's epoch back.
    pub voided_by: Option<u64>,
    /// How many of the named proposals are entries of the current epoch.
    pub proposals: usize,
    /// The KeyPackages that the Welcomes name, as far as they are known.
    pub packages: Vec<KnownPackage>,
    /// The caller was barred longer ago than a bar lasts.
    pub bar_is_over: bool,
    /// Members of another user than the committer's stay, and may confirm.
    pub other_users: bool,
    /// Devices other than the committer stay, and may confirm.
    pub other_devices: bool,
}

/// Why a membership is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// The device asked to leave.
    Leaving,
    /// The device was revoked.
    Revoked,
}

/// Which devices [`Known::members`] must be read for.
pub fn named(request: &CommitRequest) -> Vec<DeviceKey> {
    let added = request.added.iter().map(|(key, _)| *key);
    let removed = request.removed.iter().map(|(key, _)| *key);
    let named: BTreeSet<_> = added.chain(removed).chain(request.introducer).collect();
    named.into_iter().collect()
}

/// The chain value before the first entry needs no look into the log.
pub fn chain_before_the_log(seen_seq: u64) -> Option<[u8; 32]> {
    (seen_seq == 0).then(chain::start)
}

/// A bar that a settled Commit has not ended; only then the clock decides.
pub fn bar_to_look_at(head: &Head, caller: Option<Membership>) -> Option<u64> {
    let barred = caller.and_then(|membership| membership.barred_seq);
    barred.filter(|seq| head.settled_seq < *seq)
}

/// The facts of a Commit.
pub fn facts(request: &CommitRequest, known: &Known) -> Commit {
    Commit {
        device: request.device,
        user: request.user,
        content_hash: request.content_hash,
        kind: kind(request, known),
        epoch: request.epoch,
        epoch_seq: request.epoch_seq,
        voided_by: known.voided_by,
        winner_seq: known.winner_seq,
        added: added(request, known),
        removed: removed(request, known),
        proposals_known: known.proposals == request.proposals.len(),
        seen_seq: request.seen_seq,
        seen_chain_fits: known.seen_chain == Some(request.seen_chain),
        revoked_members: pending(known, Pending::Revoked),
        leaving_members: pending(known, Pending::Leaving),
        welcomed: welcomed(request, known),
        leaves_fit: leaves_fit(request, known),
        past_epochs: request.past_epochs,
        external_join: request.external_join,
        fault: request.fault.clone(),
        bar_is_over: known.bar_is_over,
        other_users: known.other_users,
        other_devices: known.other_devices,
    }
}

fn member_user(known: &Known, key: DeviceKey) -> Option<Uuid> {
    let member = known.members.iter().find(|(member, _)| *member == key);
    member.map(|(_, membership)| membership.user)
}

/// An introduction counts when its signer is a member with the caller's user; its signature was checked before.
fn kind(request: &CommitRequest, known: &Known) -> CommitKind {
    if !request.external {
        return CommitKind::Member;
    }
    let introducer = request.introducer.and_then(|key| member_user(known, key));
    CommitKind::External {
        introduced: introducer == Some(request.user),
    }
}

fn added(request: &CommitRequest, known: &Known) -> Vec<Added> {
    let added = request.added.iter().map(|(key, user)| {
        let device = known.devices.iter().find(|device| device.key == *key);
        Added {
            key: *key,
            user: *user,
            known_user: device.map(|device| device.user),
            revoked: device.is_some_and(|device| device.revoked),
            member: member_user(known, *key).is_some(),
        }
    });
    added.collect()
}

fn removed(request: &CommitRequest, known: &Known) -> Vec<Removed> {
    let removed = request.removed.iter().map(|(key, user)| Removed {
        key: *key,
        user: *user,
        member_user: member_user(known, *key),
    });
    removed.collect()
}

fn pending(known: &Known, why: Pending) -> Vec<DeviceKey> {
    let pending = known.pending.iter().filter(|(_, pending)| *pending == why);
    pending.map(|(key, _)| *key).collect()
}

fn package<'k>(known: &'k Known, reference: &[u8]) -> Option<&'k KnownPackage> {
    let mut packages = known.packages.iter();
    packages.find(|package| package.reference == reference)
}

fn welcomed(request: &CommitRequest, known: &Known) -> Vec<Option<DeviceKey>> {
    let owner = |reference: &Vec<u8>| package(known, reference).map(|package| package.owner);
    request.welcomed.iter().map(owner).collect()
}

/// What enters the tree is, byte for byte, what the KeyPackages that the Welcomes name hold, and nothing else does: their certificates
/// were verified when they were published.
fn leaves_fit(request: &CommitRequest, known: &Known) -> bool {
    let mut new: Vec<&[u8]> = request.new_leaves.iter().map(Vec::as_slice).collect();
    let packages = request.welcomed.iter();
    let packages = packages.filter_map(|reference| package(known, reference));
    let mut expected: Vec<&[u8]> = packages.map(|package| package.leaf.as_slice()).collect();
    new.sort_unstable();
    expected.sort_unstable();
    new == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u128) -> DeviceKey {
        DeviceKey {
            domain: 1,
            device: Uuid::from_u128(n),
        }
    }

    fn user(n: u128) -> Uuid {
        Uuid::from_u128(100 + n)
    }

    fn request() -> CommitRequest {
        CommitRequest {
            device: key(1),
            user: user(1),
            content_hash: [0; 32],
            external: false,
            introducer: None,
            epoch: 0,
            epoch_seq: 0,
            added: vec![(key(2), user(2))],
            removed: vec![(key(3), user(3))],
            proposals: Vec::new(),
            seen_seq: 0,
            seen_chain: chain::start(),
            welcomed: vec![vec![7]],
            new_leaves: vec![vec![1, 2]],
            past_epochs: 1,
            external_join: ExternalJoin::Resync,
            fault: None,
        }
    }

    fn known() -> Known {
        let membership = Membership {
            user: user(3),
            joined_seq: 0,
            barred_seq: None,
        };
        Known {
            devices: vec![KnownDevice {
                key: key(2),
                user: user(2),
                revoked: false,
            }],
            members: vec![(key(3), membership)],
            seen_chain: Some(chain::start()),
            packages: vec![KnownPackage {
                reference: vec![7],
                owner: key(2),
                leaf: vec![1, 2],
            }],
            ..Known::default()
        }
    }

    #[test]
    fn a_commit_that_is_what_it_says_fits() {
        let facts = facts(&request(), &known());
        assert!(facts.leaves_fit && facts.seen_chain_fits && facts.proposals_known);
        assert_eq!(facts.welcomed, [Some(key(2))]);
        assert_eq!(facts.added[0].known_user, Some(user(2)));
        assert_eq!(facts.removed[0].member_user, Some(user(3)));
        assert_eq!(facts.kind, CommitKind::Member);
    }

    #[test]
    fn leaves_that_no_named_key_package_holds_do_not_fit() {
        let spoilt: [(&str, Vec<Vec<u8>>); 4] = [
            ("another leaf", vec![vec![1, 3]]),
            ("one more", vec![vec![1, 2], vec![9]]),
            ("the same twice", vec![vec![1, 2], vec![1, 2]]),
            ("none", Vec::new()),
        ];
        for (what, new_leaves) in spoilt {
            let request = CommitRequest {
                new_leaves,
                ..request()
            };
            assert!(!facts(&request, &known()).leaves_fit, "{what}");
        }
    }

    #[test]
    fn an_introduction_counts_of_a_member_with_the_callers_user_only() {
        let introduced = |introducer, of: Uuid| {
            let request = CommitRequest {
                external: true,
                introducer: Some(introducer),
                user: of,
                ..request()
            };
            facts(&request, &known()).kind
        };
        let external = |introduced| CommitKind::External { introduced };
        assert_eq!(introduced(key(3), user(3)), external(true));
        assert_eq!(introduced(key(3), user(1)), external(false));
        assert_eq!(introduced(key(4), user(4)), external(false));
    }
}
