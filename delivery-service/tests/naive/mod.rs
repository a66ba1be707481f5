//! A naive model of one group that keeps the whole history and searches it from the beginning each time; and what may happen to it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part"
)]

use delivery_service::ordering::group::*;
use proptest::prelude::*;
use uuid::Uuid;

pub const DEVICES: u128 = 4;

pub fn key(n: u128) -> DeviceKey {
    DeviceKey {
        domain: 1,
        device: Uuid::from_u128(n),
    }
}

/// Two devices belong to one user.
pub fn user(n: u128) -> Uuid {
    Uuid::from_u128(100 + n / 2)
}

#[derive(Debug, Clone)]
pub enum Op {
    Send {
        by: u128,
        lag: u64,
        proposal: bool,
    },
    Commit {
        by: u128,
        lag: u64,
        adds: Option<u128>,
        removes: Option<u128>,
    },
    Resync {
        by: u128,
    },
    Repeat {
        of: usize,
    },
    Revoke {
        device: u128,
    },
    Leave {
        by: u128,
        this_membership: bool,
    },
}

pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    let device = 0..DEVICES;
    let op = prop_oneof![
        4 => (device.clone(), 0..4u64, any::<bool>()).prop_map(|(by, lag, proposal)| Op::Send { by, lag, proposal }),
        4 => (device.clone(), 0..2u64, prop::option::of(device.clone()), prop::option::of(device.clone()))
            .prop_map(|(by, lag, adds, removes)| Op::Commit { by, lag, adds, removes }),
        1 => device.clone().prop_map(|by| Op::Resync { by }),
        2 => (0..20usize).prop_map(|of| Op::Repeat { of }),
        1 => (device.clone(), any::<bool>()).prop_map(|(by, this_membership)| Op::Leave { by, this_membership }),
        1 => device.prop_map(|device| Op::Revoke { device }),
    ];
    prop::collection::vec(op, 1..40)
}

/// One accepted entry as the model remembers it.
#[derive(Debug, Clone)]
pub struct Past {
    pub command: Command,
    pub by: u128,
    pub hash: [u8; 32],
    pub seq: u64,
    pub epoch_seq: u64,
}

/// The naive model: everything that ever happened, searched from the beginning each time.
pub struct Model {
    pub log: Vec<Past>,
    /// `epoch_seq` of each epoch number.
    pub epochs: Vec<u64>,
    /// `(device, joined, removed)`.
    pub intervals: Vec<(u128, u64, Option<u64>)>,
    pub revoked: Vec<u128>,
    pub last_removal: u64,
    /// What the one under test keeps; the model reads its seq only.
    pub head: Head,
}

impl Model {
    pub fn new() -> Self {
        Self {
            log: Vec::new(),
            epochs: vec![0],
            intervals: vec![(0, 0, None)],
            revoked: Vec::new(),
            last_removal: 0,
            head: Head::created(0, 1, ExternalJoin::Resync),
        }
    }

    pub fn epoch(&self) -> u64 {
        self.epochs.len() as u64 - 1
    }

    pub fn member(&self, n: u128) -> Option<Membership> {
        self.intervals
            .iter()
            .find(|(device, _, removed)| *device == n && removed.is_none())
            .map(|(_, joined_seq, _)| Membership {
                user: user(n),
                joined_seq: *joined_seq,
                barred_seq: None,
            })
    }

    pub fn may_read(&self, n: u128, seq: u64) -> bool {
        self.intervals
            .iter()
            .any(|(device, from, to)| *device == n && *from <= seq && to.is_none_or(|to| seq <= to))
    }

    pub fn group(&self, by: u128, hash: [u8; 32]) -> Group {
        let prior = self.log.iter().find(|p| p.hash == hash).map(|p| Prior {
            seq: p.seq,
            epoch: 0,
            epoch_seq: p.epoch_seq,
            kind: 4,
            content_hash: p.hash,
            chain: [0; 32],
            accepted_at: 0,
            readable: self.may_read(by, p.seq),
            voided_by: None,
        });
        Group {
            head: self.head.clone(),
            caller: self.member(by),
            caller_revoked: self.revoked.contains(&by),
            prior,
        }
    }

    /// Members that were revoked and are still in.
    pub fn pending(&self) -> Vec<DeviceKey> {
        (0..DEVICES)
            .filter(|n| self.revoked.contains(n) && self.member(*n).is_some())
            .map(key)
            .collect()
    }

    /// Members that asked to leave in this membership, and were not revoked.
    pub fn leaving(&self) -> Vec<DeviceKey> {
        let asked = |n: &u128| {
            let joined = self.member(*n).map(|member| member.joined_seq);
            self.log.iter().any(|past| {
                let left = matches!(past.command, Command::Leave(_)) && past.by == *n;
                left && joined.is_some_and(|joined| joined < past.seq)
            })
        };
        (0..DEVICES)
            .filter(|n| !self.revoked.contains(n) && asked(n))
            .map(key)
            .collect()
    }

    pub fn command(&self, op: &Op, hash: [u8; 32]) -> Option<(u128, Command)> {
        let named = |lag: u64| {
            let epoch = self.epoch().checked_sub(lag)?;
            Some((epoch, self.epochs[usize::try_from(epoch).ok()?]))
        };
        let commit = |by: u128,
                      (epoch, epoch_seq): (u64, u64),
                      kind,
                      added: Vec<u128>,
                      removed: Vec<u128>| {
            let stays = |n: &u128| *n != by && !removed.contains(n) && self.member(*n).is_some();
            Command::Commit(Commit {
                device: key(by),
                user: user(by),
                content_hash: hash,
                kind,
                epoch,
                epoch_seq,
                voided_by: None,
                winner_seq: self
                    .epochs
                    .get(usize::try_from(epoch).expect("few epochs") + 1)
                    .copied(),
                added: added
                    .iter()
                    .map(|n| Added {
                        key: key(*n),
                        user: user(*n),
                        known_user: Some(user(*n)),
                        revoked: self.revoked.contains(n),
                        member: self.member(*n).is_some(),
                    })
                    .collect(),
                removed: removed
                    .iter()
                    .map(|n| Removed {
                        key: key(*n),
                        user: user(*n),
                        member_user: self.member(*n).map(|m| m.user),
                    })
                    .collect(),
                proposals_known: true,
                seen_seq: self.head.seq,
                seen_chain_fits: true,
                revoked_members: self.pending(),
                welcomed: if kind == CommitKind::Member {
                    added.iter().map(|n| Some(key(*n))).collect()
                } else {
                    vec![]
                },
                leaving_members: self.leaving(),
                leaves_fit: true,
                past_epochs: self.head.past_epochs,
                external_join: self.head.external_join,
                fault: None,
                bar_is_over: false,
                other_users: (0..DEVICES).any(|n| stays(&n) && user(n) != user(by)),
                other_devices: (0..DEVICES).any(|n| stays(&n)),
            })
        };
        match op {
            Op::Send { by, lag, proposal } => {
                let (epoch, epoch_seq) = named(*lag)?;
                let send = Send {
                    device: key(*by),
                    content_hash: hash,
                    proposal: *proposal,
                    epoch,
                    epoch_seq,
                    voided_by: None,
                    named_epoch: Some(epoch),
                };
                Some((*by, Command::Send(send)))
            }
            Op::Commit {
                by,
                lag,
                adds,
                removes,
            } => {
                let lists = (
                    adds.iter().copied().collect(),
                    removes.iter().copied().collect(),
                );
                Some((
                    *by,
                    commit(*by, named(*lag)?, CommitKind::Member, lists.0, lists.1),
                ))
            }
            Op::Resync { by } => {
                let old = self.member(*by).map(|_| *by).into_iter().collect();
                let kind = CommitKind::External { introduced: false };
                Some((*by, commit(*by, named(0)?, kind, vec![*by], old)))
            }
            Op::Repeat { of } => {
                let past = self.log.get(*of)?;
                Some((past.by, past.command.clone()))
            }
            Op::Leave {
                by,
                this_membership,
            } => {
                let joined_seq = self.member(*by).map_or(0, |m| m.joined_seq);
                let leave = Leave {
                    content_hash: hash,
                    joined_seq: joined_seq + u64::from(!this_membership),
                };
                Some((*by, Command::Leave(leave)))
            }
            Op::Revoke { .. } => None,
        }
    }

    /// What the contract says, in the order in which it says it.
    pub fn expect(&self, by: u128, command: &Command) -> Result<(), &'static str> {
        let hash = hash_of(command);
        if let Some(past) = self.log.iter().find(|p| p.hash == hash)
            && self.may_read(by, past.seq)
        {
            return Err("replay");
        }
        if self.revoked.contains(&by) {
            return Err("revoked");
        }
        if self.member(by).is_none() {
            return Err("not found");
        }
        match command {
            Command::Send(send) => self.expect_send(send),
            Command::Commit(commit) => self.expect_commit(by, commit),
            Command::Leave(leave) => match self.member(by) {
                Some(member) if member.joined_seq == leave.joined_seq => Ok(()),
                _ => Err("other membership"),
            },
        }
    }

    fn expect_send(&self, send: &Send) -> Result<(), &'static str> {
        let lag = self.epoch() - send.epoch;
        if send.proposal && lag > 0 {
            return Err("stale");
        }
        if lag > 1 || send.epoch_seq < self.last_removal {
            return Err("too old");
        }
        if !send.proposal && !self.pending().is_empty() {
            return Err("pending");
        }
        Ok(())
    }

    fn expect_commit(&self, by: u128, commit: &Commit) -> Result<(), &'static str> {
        if commit.epoch != self.epoch() {
            return Err("stale");
        }
        let external = matches!(commit.kind, CommitKind::External { .. });
        let removed: Vec<DeviceKey> = commit.removed.iter().map(|r| r.key).collect();
        let mut pending = self.pending();
        pending.extend(self.leaving().into_iter().filter(|p| *p != key(by)));
        if !external && pending.iter().any(|p| !removed.contains(p)) {
            return Err("pending");
        }
        let bad_remove = commit.removed.iter().any(|r| r.member_user.is_none());
        let bad_add = commit
            .added
            .iter()
            .any(|a| a.revoked || (a.member && !removed.contains(&a.key)));
        let self_remove = !external && removed.contains(&key(by));
        if bad_remove || bad_add || self_remove {
            return Err("commit info");
        }
        Ok(())
    }

    /// It was accepted as entry `seq`, and this is the head after it.
    pub fn apply(&mut self, by: u128, command: &Command, seq: u64, head: Head) {
        let epoch_seq = match command {
            Command::Send(s) => s.epoch_seq,
            Command::Commit(c) => c.epoch_seq,
            Command::Leave(_) => self.epochs[self.epochs.len() - 1],
        };
        self.head = head;
        self.log.push(Past {
            command: command.clone(),
            by,
            hash: hash_of(command),
            seq,
            epoch_seq,
        });
        let Command::Commit(commit) = command else {
            return;
        };
        for removed in &commit.removed {
            let open = self
                .intervals
                .iter_mut()
                .find(|(d, _, end)| key(*d) == removed.key && end.is_none());
            open.expect("a removed device is a member").2 = Some(seq);
            if removed.key != commit.device {
                self.last_removal = seq;
            }
        }
        for added in &commit.added {
            self.intervals.push((added.key.device.as_u128(), seq, None));
        }
        self.epochs.push(seq);
        self.count_pending();
    }

    /// A device is revoked; where it is a member, it is to be removed.
    pub fn revoke(&mut self, device: u128) {
        self.revoked.push(device);
        self.count_pending();
    }

    fn count_pending(&mut self) {
        self.head.pending_removals = u32::try_from(self.pending().len()).expect("few devices");
    }
}

pub fn name(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::NotFound => "not found",
        Rejection::DeviceRevoked => "revoked",
        Rejection::StaleEpoch { .. } => "stale",
        Rejection::EpochTooOld { .. } => "too old",
        Rejection::PendingRemoval { .. } => "pending",
        Rejection::CommitInfo(_) => "commit info",
        Rejection::OtherMembership => "other membership",
        _ => "unexpected",
    }
}

/// What makes a command the same command.
pub fn hash_of(command: &Command) -> [u8; 32] {
    match command {
        Command::Send(s) => s.content_hash,
        Command::Commit(c) => c.content_hash,
        Command::Leave(l) => l.content_hash,
    }
}
