//! The ordering state machine: which entry may come next in a group's log, and what it changes.
//!
//! Pure and synchronous. The caller locks the group's head row, reads a [`Group`] in a *second* statement, asks [`Group::decide`],
//! and writes the [`Decision`] in the same transaction.
//!
//! | module | what |
//! |---|---|
//! | this one | values, and [`Group::decide`] |
//! | `send` | messages, proposals, leave requests |
//! | `commit` | Commits |
//! | [`settle`] | epochs confirmed, Commits voided, members marked, groups closed |

mod commit;
mod send;
pub mod settle;

use chancery_proto::chain;
use uuid::Uuid;

/// A device by the number of its vouching domain and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceKey {
    /// Row of the `domains` table.
    pub domain: i16,
    /// The device's UUID.
    pub device: Uuid,
}

/// Whose confirmation settles the newest epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConfirmBy {
    /// Nobody's: it is settled.
    Nobody,
    /// A device of another user than the committer's.
    OtherUser,
    /// Another device, where the committer's user is alone.
    OtherDevice,
}

/// Who made the Commit that began an unsettled epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Committer {
    /// The device.
    pub key: DeviceKey,
    /// Its user.
    pub user: Uuid,
    /// Whose confirmation settles the epoch.
    pub confirm_by: ConfirmBy,
}

/// Who may join by an external Commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExternalJoin {
    /// Nobody.
    None,
    /// A device of the roster that lost its group state.
    Resync,
    /// Also a new device of a user in the roster, introduced by another of that user's devices.
    SameUser,
}

/// Whether a group takes entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It does.
    Open,
    /// It was deleted.
    Deleted,
    /// It goes on in another group.
    Replaced,
    /// Only leaving devices were left.
    Empty,
}

/// The group's head row, as locked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Head {
    /// See [`Stage`].
    pub stage: Stage,
    /// Last seq given.
    pub seq: u64,
    /// Current MLS epoch number.
    pub epoch: u64,
    /// Seq of the Commit that began it; 0 for the creation.
    pub epoch_seq: u64,
    /// `epoch_seq` begun by the last Commit that removed a device.
    pub floor_seq: u64,
    /// Newest settled `epoch_seq`.
    pub settled_seq: u64,
    /// Devices revoked and still in the roster.
    pub pending_removals: u32,
    /// Of an unsettled epoch only.
    pub committer: Option<Committer>,
    /// How many past epochs application messages may come from.
    pub past_epochs: u64,
    /// External join policy.
    pub external_join: ExternalJoin,
    /// Chain value at `seq`.
    pub chain: [u8; 32],
    /// Time of the last entry, Unix microseconds.
    pub last_at: i64,
}

impl Head {
    /// The head of a group that was created just now, in an MLS epoch of its creator's choice.
    pub fn created(epoch: u64, past_epochs: u64, external_join: ExternalJoin) -> Self {
        Self {
            stage: Stage::Open,
            seq: 0,
            epoch,
            epoch_seq: 0,
            floor_seq: 0,
            settled_seq: 0,
            pending_removals: 0,
            committer: None,
            past_epochs,
            external_join,
            chain: chain::start(),
            last_at: 0,
        }
    }
}

/// An open interval of membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Its user.
    pub user: Uuid,
    /// Seq of the joining Commit.
    pub joined_seq: u64,
    /// The entry that voided a Commit of this device: until a later epoch has settled, it commits nothing.
    pub barred_seq: Option<u64>,
}

/// An entry that already holds the request's `message_id`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prior {
    /// Its seq.
    pub seq: u64,
    /// The epoch it was framed in.
    pub epoch: u64,
    /// The name of that epoch.
    pub epoch_seq: u64,
    /// Its `EntryKind`.
    pub kind: i16,
    /// SHA-256 of the request that made it.
    pub content_hash: [u8; 32],
    /// Chain value after it.
    pub chain: [u8; 32],
    /// Unix microseconds.
    pub accepted_at: i64,
    /// Does one of the caller's intervals hold this seq?
    pub readable: bool,
    /// The VOID entry that took it back.
    pub voided_by: Option<u64>,
}

/// What the second statement read under the head's lock.
#[derive(Debug, Clone)]
pub struct Group {
    /// The head row.
    pub head: Head,
    /// The caller's open membership.
    pub caller: Option<Membership>,
    /// The calling device was revoked.
    pub caller_revoked: bool,
    /// The entry with this `message_id`, if any.
    pub prior: Option<Prior>,
}

/// Facts about an application message or proposal.
#[derive(Debug, Clone)]
pub struct Send {
    /// The sender.
    pub device: DeviceKey,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// Application message, or proposal.
    pub proposal: bool,
    /// From the framing.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// Epoch number of the standing epoch that `epoch_seq` names, if there is one.
    pub named_epoch: Option<u64>,
    /// The VOID entry that took the named epoch back.
    pub voided_by: Option<u64>,
}

/// One added device, with what the server knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Added {
    /// The device.
    pub key: DeviceKey,
    /// The user that the Commit names.
    pub user: Uuid,
    /// The user that the server knows for the device; absent for an unknown device.
    pub known_user: Option<Uuid>,
    /// It was revoked.
    pub revoked: bool,
    /// It is in the roster now.
    pub member: bool,
}

/// One removed device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Removed {
    /// The device.
    pub key: DeviceKey,
    /// The user that the Commit names.
    pub user: Uuid,
    /// Its user by the roster; absent for a device that is not in it.
    pub member_user: Option<Uuid>,
}

/// How the Commit comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitKind {
    /// By a member.
    Member,
    /// From outside (RFC 9420 section 12.4.3.2); true with a valid introduction.
    External {
        /// A valid introduction by a device of the same user in the roster came with it.
        introduced: bool,
    },
}

/// Facts about a Commit, derived by [`crate::ordering::facts::facts`]. Sizes and framing were checked before.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The committer.
    pub device: DeviceKey,
    /// Its user, from the token.
    pub user: Uuid,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// By a member, or from outside.
    pub kind: CommitKind,
    /// The epoch it was made in, from the framing.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// The VOID entry that took the named epoch back.
    pub voided_by: Option<u64>,
    /// The Commit that took the epoch after `epoch`, where it is already taken.
    pub winner_seq: Option<u64>,
    /// CommitInfo's adds.
    pub added: Vec<Added>,
    /// CommitInfo's removes.
    pub removed: Vec<Removed>,
    /// For each proposal committed by reference: is it a proposal of this epoch in the log?
    pub proposals_known: bool,
    /// CommitInfo's `seen_seq`.
    pub seen_seq: u64,
    /// CommitInfo's `seen_chain` is the log's at `seen_seq`.
    pub seen_chain_fits: bool,
    /// Devices of the roster marked as revoked.
    pub revoked_members: Vec<DeviceKey>,
    /// Devices of the roster that asked to leave, and were not revoked.
    pub leaving_members: Vec<DeviceKey>,
    /// The devices that the Welcomes' KeyPackageRefs belong to; `None` for an unknown ref.
    pub welcomed: Vec<Option<DeviceKey>>,
    /// The leaves that enter the tree are those of the KeyPackages that the Welcomes name.
    pub leaves_fit: bool,
    /// `past_epochs` of the policy in the GroupInfo.
    pub past_epochs: u64,
    /// `external_join` of the policy in the GroupInfo.
    pub external_join: ExternalJoin,
    /// What is wrong with GroupInfo, tree, or external leaf: reported where nothing else is wrong.
    pub fault: Option<Rejection>,
    /// The caller was barred so long ago that it may begin an epoch again, whatever has settled since.
    pub bar_is_over: bool,
    /// Members before and after that are of another user.
    pub other_users: bool,
    /// Other devices that are members before and after.
    pub other_devices: bool,
}

/// Facts about a member's wish to be removed. Its signature was checked before.
#[derive(Debug, Clone)]
pub struct Leave {
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// The membership that it is about.
    pub joined_seq: u64,
}

/// What somebody asks the log to take.
#[derive(Debug, Clone)]
pub enum Command {
    /// An application message or a proposal.
    Send(Send),
    /// A Commit with all that belongs to it.
    Commit(Commit),
    /// A leave request: it asks, and bars nothing.
    Leave(Leave),
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Nothing: it was accepted before.
    Replay(Prior),
    /// An entry, and the head after it.
    Append(Append),
}

/// One entry and the head after it (`chain` and `last_at` of the head are filled in by the appender).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Append {
    /// Its seq: head + 1.
    pub seq: u64,
    /// The epoch it was framed in.
    pub epoch: u64,
    /// The name of that epoch.
    pub epoch_seq: u64,
    /// `accepted_at`, Unix microseconds.
    pub accepted_at: i64,
    /// The head's new fields.
    pub head: Head,
}

/// Why the log does not take it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Unknown group, or the caller is no member: the same answer.
    NotFound,
    /// The calling device was revoked.
    DeviceRevoked,
    /// Deleted or replaced.
    Closed,
    /// The `message_id` holds other bytes.
    MessageIdReused,
    /// The epoch is taken.
    StaleEpoch {
        /// Current epoch number.
        current_epoch: u64,
        /// Its name.
        epoch_seq: u64,
        /// The Commit that took the epoch.
        winner_seq: u64,
    },
    /// The epoch has not begun.
    EpochInFuture {
        /// Current epoch number.
        current_epoch: u64,
        /// Its name.
        epoch_seq: u64,
    },
    /// Older than the window, or before the last removal.
    EpochTooOld {
        /// Current epoch number.
        current_epoch: u64,
        /// Its name.
        epoch_seq: u64,
    },
    /// The epoch was taken back.
    EpochVoided {
        /// Current epoch number.
        current_epoch: u64,
        /// Its name.
        epoch_seq: u64,
        /// The VOID entry.
        by_seq: u64,
    },
    /// A Commit of this device was voided, and none of another has settled since.
    CommitterBarred,
    /// Revoked and leaving devices must be removed first.
    PendingRemoval {
        /// How many.
        count: u32,
    },
    /// The CommitInfo does not fit roster or log.
    CommitInfo(&'static str),
    /// The log that the committer saw is not this one.
    HistoryChanged,
    /// The Welcomes do not name exactly the added devices.
    WelcomeMismatch,
    /// The GroupInfo is not that of the group's next epoch, with the reason.
    GroupInfoMismatch(&'static str),
    /// The tree is not the one that GroupInfo and Welcomes speak of, with the reason.
    TreeMismatch(&'static str),
    /// A leaf or a signature by it is not valid, with the reason.
    CredentialInvalid(&'static str),
    /// The group's policy forbids it.
    Policy(&'static str),
    /// The request is about a membership that is not the caller's current one.
    OtherMembership,
}

impl Group {
    /// Decides on one command. `now` is the database's time in Unix microseconds, read with the lock.
    ///
    /// # Errors
    /// A [`Rejection`] means that nothing happens.
    pub fn decide(&self, command: &Command, now: i64) -> Result<Decision, Rejection> {
        let hash = match command {
            Command::Send(send) => &send.content_hash,
            Command::Commit(commit) => &commit.content_hash,
            Command::Leave(leave) => &leave.content_hash,
        };
        if let Some(replay) = self.replay(hash)? {
            return Ok(Decision::Replay(replay));
        }
        if self.caller_revoked {
            return Err(Rejection::DeviceRevoked);
        }
        let head = match command {
            Command::Send(send) => self.send(send)?,
            Command::Commit(commit) => self.commit(commit)?,
            Command::Leave(leave) => self.leave(leave)?,
        };
        let (epoch, epoch_seq) = match command {
            Command::Send(send) => (send.epoch, send.epoch_seq),
            Command::Commit(commit) => (commit.epoch, commit.epoch_seq),
            Command::Leave(_) => (self.head.epoch, self.head.epoch_seq),
        };
        Ok(Decision::Append(Append {
            seq: head.seq,
            epoch,
            epoch_seq,
            accepted_at: now.max(self.head.last_at),
            head,
        }))
    }

    /// The id comes before everything else, for a caller who may read the entry: a repeat after a removal still gets its answer.
    fn replay(&self, content_hash: &[u8; 32]) -> Result<Option<Prior>, Rejection> {
        match &self.prior {
            Some(prior) if prior.readable && prior.content_hash == *content_hash => {
                Ok(Some(prior.clone()))
            }
            Some(prior) if prior.readable => Err(Rejection::MessageIdReused),
            _ => Ok(None),
        }
    }

    /// An id that the caller cannot read is taken all the same; only somebody who may write learns that.
    fn check_id_free(&self) -> Result<(), Rejection> {
        match self.prior {
            Some(_) => Err(Rejection::MessageIdReused),
            None => Ok(()),
        }
    }

    fn head_after_entry(&self) -> Head {
        Head {
            seq: self.head.seq + 1,
            ..self.head.clone()
        }
    }

    fn check_open(&self) -> Result<(), Rejection> {
        match self.head.stage {
            Stage::Open => Ok(()),
            Stage::Deleted | Stage::Replaced | Stage::Empty => Err(Rejection::Closed),
        }
    }

    /// An epoch that was taken back is no conflict with the current one: who made the request must learn of the void.
    fn check_not_voided(&self, voided_by: Option<u64>) -> Result<(), Rejection> {
        match voided_by {
            None => Ok(()),
            Some(by_seq) => Err(Rejection::EpochVoided {
                current_epoch: self.head.epoch,
                epoch_seq: self.head.epoch_seq,
                by_seq,
            }),
        }
    }

    fn stale(&self, winner_seq: Option<u64>) -> Rejection {
        Rejection::StaleEpoch {
            current_epoch: self.head.epoch,
            epoch_seq: self.head.epoch_seq,
            winner_seq: winner_seq.unwrap_or(self.head.epoch_seq),
        }
    }

    fn in_future(&self) -> Rejection {
        Rejection::EpochInFuture {
            current_epoch: self.head.epoch,
            epoch_seq: self.head.epoch_seq,
        }
    }
}
