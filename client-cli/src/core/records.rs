//! What a member keeps beside openmls' own state. All of it is written in the same transaction as that state.

use std::{fmt, str::FromStr};

use chancery_proto::{commit_info::Member, common::v1::GroupRef};
use serde::{Deserialize, Serialize};

use super::CoreError;
use crate::store::{Step, StoreError};

/// Which group: `<domain>/<lower hex>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupName {
    /// The ordering Delivery Service.
    pub domain: String,
    /// 16 to 64 bytes.
    pub id: Vec<u8>,
}

impl GroupName {
    /// On the wire.
    pub fn to_ref(&self) -> GroupRef {
        GroupRef {
            domain: self.domain.clone(),
            id: self.id.clone().into(),
        }
    }

    /// From the wire.
    pub fn from_ref(group: &GroupRef) -> Self {
        Self {
            domain: group.domain.clone(),
            id: group.id.to_vec(),
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, hex::encode(&self.id))
    }
}

/// Reads a group's id, apart from its domain.
///
/// # Errors
/// Not hex, or not of 16 to 64 bytes.
pub fn group_id(text: &str) -> Result<Vec<u8>, String> {
    let id = hex::decode(text).map_err(|_| "a group's id is hex")?;
    if !(16..=64).contains(&id.len()) {
        return Err("a group has an id of 16 to 64 bytes".into());
    }
    Ok(id)
}

impl FromStr for GroupName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, id) = text
            .split_once('/')
            .ok_or("a group is written <domain>/<hex>")?;
        let id = group_id(id)?;
        if domain.is_empty() {
            return Err("a group has a domain".into());
        }
        Ok(Self {
            domain: domain.to_owned(),
            id,
        })
    }
}

/// [`Member`] in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Person {
    /// The vouching domain.
    pub domain: String,
    /// The user's UUID.
    pub user: [u8; 16],
    /// The device's UUID.
    pub device: [u8; 16],
}

impl Person {
    /// `mimi://<domain>/u/<uuid>`.
    pub fn user_uri(&self) -> String {
        chancery_proto::certificate::user_uri(&self.domain, uuid::Uuid::from_bytes(self.user))
    }

    /// `mimi://<domain>/d/<uuid>`.
    pub fn device_uri(&self) -> String {
        chancery_proto::certificate::device_uri(&self.domain, uuid::Uuid::from_bytes(self.device))
    }
}

impl From<Member> for Person {
    fn from(m: Member) -> Self {
        Self {
            domain: m.domain,
            user: m.user,
            device: m.device,
        }
    }
}

impl From<Person> for Member {
    fn from(p: Person) -> Self {
        Self {
            domain: p.domain,
            user: p.user,
            device: p.device,
        }
    }
}

/// What this device may do in a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupState {
    /// Made here, not yet accepted.
    Creating,
    /// A member.
    Active,
    /// It was removed; it reads no further.
    Removed,
    /// The server's history is not the one that was read; the group is stopped.
    HistoryChanged,
    /// The state cannot follow the log; only an external Commit helps. With the reason.
    NeedsRejoin(String),
    /// The server broke its word; the group is stopped, and a person must look at it. With what happened.
    Alarm(String),
    /// It goes on in another group.
    Replaced(GroupName),
}

impl GroupState {
    /// As in answers.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Active => "active",
            Self::Removed => "removed",
            Self::HistoryChanged => "history_changed",
            Self::NeedsRejoin(_) => "needs_rejoin",
            Self::Alarm(_) => "alarm",
            Self::Replaced(_) => "replaced",
        }
    }

    /// Whether nothing more is read or sent, whatever comes.
    pub fn ended(&self) -> bool {
        matches!(
            self,
            Self::HistoryChanged | Self::Alarm(_) | Self::Replaced(_)
        )
    }
}

/// What a Commit is to do. Kept until the Commit is accepted, so that it can be built again on a newer epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Intent {
    /// MLSMessage(KeyPackage) of each device to add.
    pub key_packages: Vec<Vec<u8>>,
    /// Devices to remove.
    pub remove: Vec<Person>,
    /// Devices of added users that had no KeyPackage.
    pub left_out: Vec<Person>,
    /// Renew the own leaf.
    pub update: bool,
}

/// The kind of a pending operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// `CreateGroup`.
    Create,
    /// `SubmitCommit` of a member.
    Commit,
    /// `SubmitCommit` from outside.
    External,
}

impl Operation {
    /// As in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Commit => "commit",
            Self::External => "external_commit",
        }
    }
}

/// What was made and may have been sent: its bytes are repeated until their outcome is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Made before sending.
    pub message_id: [u8; 16],
    /// Which call.
    pub operation: Operation,
    /// The encoded request.
    pub request: Vec<u8>,
    /// For building it again.
    pub intent: Intent,
    /// What it really adds.
    pub added: Vec<Person>,
    /// What it really removes.
    pub removed: Vec<Person>,
    /// Seqs of the proposals that it takes in by reference.
    pub proposals: Vec<u64>,
    /// Set once the server said so.
    pub accepted: Option<Accepted>,
}

/// The server's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its place in the log.
    pub seq: u64,
    /// The epoch that it began, or that a message was sent in.
    pub epoch: u64,
    /// The chain after it.
    pub chain: Vec<u8>,
    /// `Outcome`.
    pub outcome: i32,
    /// The request had been accepted before.
    pub replayed: bool,
}

/// A Commit that this device cannot merge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Its place.
    pub seq: u64,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// `FailureReason`.
    pub reason: u32,
    /// When the server took the report, Unix seconds.
    pub reported_at: Option<i64>,
}

/// A Commit that this device merged, as long as it may be voided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    /// Its place.
    pub seq: u64,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Who made it.
    pub committer: Option<Person>,
    /// Whom it added.
    pub added: Vec<Person>,
    /// Whom it removed, with the keys of their leaves: they may have reported an earlier Commit that was built on.
    pub removed: Vec<(Person, Vec<u8>)>,
}

/// A group as this device sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Which.
    pub name: GroupName,
    /// See [`GroupState`].
    pub state: GroupState,
    /// The last entry that was applied.
    pub head_seq: u64,
    /// The chain after it.
    pub chain: [u8; 32],
    /// Of the MLS state.
    pub epoch: u64,
    /// The seq of the Commit that began it.
    pub epoch_seq: u64,
    /// The Commit that this device joined by.
    pub joined_seq: u64,
    /// Entries up to here cannot be decrypted: an external Commit renewed the state.
    pub rejoined_seq: u64,
    /// Proposals of this epoch that a Commit of this device takes in.
    pub proposals: Vec<u64>,
    /// Members that asked to be removed: the next Commit of this device removes them, and nothing is said before.
    pub leaving: Vec<Person>,
    /// This device asked to be removed: it says nothing more.
    pub leaves: bool,
    /// Members whose revocation the Authentication Service signed: the next Commit of this device removes them, and nothing is said before.
    pub revoked: Vec<Person>,
    /// Members whose certificate no pinned root ever signed: what they say is attributed to nobody.
    pub distrusted: Vec<Person>,
    /// The last entry that the server acknowledged to this device, with the chain after it: the log must come to hold it.
    pub promised: Option<(u64, Vec<u8>)>,
    /// The newest epoch that the server called settled: it is never voided.
    pub settled_seq: u64,
    /// Merged Commits after that one, oldest first.
    pub merged: Vec<Merged>,
    /// What this device cannot merge.
    pub trouble: Option<Trouble>,
    /// A Commit was taken back on this device's report: until another's Commit has settled its maker cannot even come back, so this device makes one.
    pub refresh: bool,
    /// The stored GroupInfo of the current epoch is not this group's.
    pub repair: bool,
    /// Texts of this device that were voided: sent again under new ids.
    pub resend: Vec<Vec<u8>>,
    /// How often another copy of this profile showed itself since a person last looked.
    pub copies: u32,
    /// What lies before the next external Commit cannot be read any more.
    pub skip_to_head: bool,
    /// Data of the policy extension, which no Commit may change.
    pub policy: Vec<u8>,
    /// SHA-256 of all extensions of the GroupContext, which no Commit may change; `None` where they are not known yet.
    pub extensions_sha256: Option<[u8; 32]>,
    /// At most one.
    pub pending: Option<Pending>,
    /// KeyPackages that were asked for and not yet used.
    pub claim: Option<ClaimRecord>,
}

impl GroupRecord {
    /// A group at this place of its log.
    pub fn new(name: GroupName, state: GroupState, head_seq: u64, chain: [u8; 32]) -> Self {
        Self {
            name,
            state,
            head_seq,
            chain,
            epoch: 0,
            epoch_seq: 0,
            joined_seq: head_seq,
            rejoined_seq: 0,
            proposals: Vec::new(),
            leaving: Vec::new(),
            leaves: false,
            revoked: Vec::new(),
            distrusted: Vec::new(),
            promised: None,
            settled_seq: 0,
            merged: Vec::new(),
            trouble: None,
            refresh: false,
            repair: false,
            resend: Vec::new(),
            copies: 0,
            skip_to_head: false,
            policy: Vec::new(),
            extensions_sha256: None,
            pending: None,
            claim: None,
        }
    }

    /// Whether the next Commit of this device removes this member.
    pub fn is_to_go(&self, person: &Person) -> bool {
        self.leaving.contains(person) || self.revoked.contains(person)
    }

    /// The state as in answers: `leaving` for a member that asked to be removed.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            GroupState::Active if self.leaves => "leaving",
            _ => self.state.name(),
        }
    }

    /// The server says that this epoch, and all before it, are settled.
    pub fn settled(&mut self, epoch_seq: u64) {
        self.settled_seq = self.settled_seq.max(epoch_seq);
        let settled = self.settled_seq;
        self.merged.retain(|merged| merged.seq > settled);
    }
}

/// A claim that may have been answered: repeated with the same id, it gets the same packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// Made before asking.
    pub claim_id: [u8; 16],
    /// Domain and id of each device, sorted.
    pub devices: Vec<(String, [u8; 16])>,
}

/// An entry as this device made it out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Its place.
    pub seq: u64,
    /// `EntryKind`.
    pub kind: u32,
    /// By its maker.
    pub message_id: Vec<u8>,
    /// Unix microseconds.
    pub accepted_at_micros: i64,
    /// As the server says.
    pub epoch: u64,
    /// As the server says.
    pub epoch_seq: u64,
    /// The chain after it.
    pub chain: [u8; 32],
    /// Who sent it, from the certificate that came with it.
    pub sender: Option<Person>,
    /// Who its certificate says that the sender is, where no pinned root signed that certificate; `sender` is empty then.
    pub unverified_sender: Option<Person>,
    /// Of an application message.
    pub text: Option<Vec<u8>>,
    /// By this device.
    pub own: bool,
    /// Devices that the Commit added.
    pub added: Vec<Person>,
    /// Devices that the Commit removed.
    pub removed: Vec<Person>,
    /// Why it was passed over.
    pub skipped: Option<String>,
    /// What a reader should know about it.
    pub note: Option<String>,
}

const GROUPS: &str = "groups";
const JOURNAL: &str = "journal";
const WELCOMES: &str = "welcomes";

pub(super) type Done<T = ()> = Result<T, StoreError>;

pub(super) fn prefix(group: &GroupName) -> Vec<u8> {
    let mut key = group.to_string().into_bytes();
    key.push(0);
    key
}

pub(super) fn key(group: &GroupName, rest: &[u8]) -> Vec<u8> {
    let mut key = prefix(group);
    key.extend_from_slice(rest);
    key
}

/// A group's record.
///
/// # Errors
/// The store.
pub fn group(step: &Step<'_>, name: &GroupName) -> Done<Option<GroupRecord>> {
    step.get(GROUPS, name.to_string().as_bytes())
}

/// The record of a group that this device knows.
///
/// # Errors
/// [`CoreError::Unknown`], or the store.
pub fn known(step: &Step<'_>, name: &GroupName) -> Result<GroupRecord, CoreError> {
    group(step, name)?.ok_or(CoreError::Unknown)
}

/// Changes the record of a group that this device knows.
///
/// # Errors
/// [`CoreError::Unknown`], or the store.
pub fn change(
    step: &Step<'_>,
    name: &GroupName,
    change: impl FnOnce(&mut GroupRecord),
) -> Result<(), CoreError> {
    let mut record = known(step, name)?;
    change(&mut record);
    Ok(put_group(step, &record)?)
}

/// Writes a group's record.
///
/// # Errors
/// The store.
pub fn put_group(step: &Step<'_>, record: &GroupRecord) -> Done {
    step.put(GROUPS, record.name.to_string().as_bytes(), record)
}

/// Notes what the server acknowledged: a log that lacks it is another one.
///
/// # Errors
/// The store.
pub fn promise(step: &Step<'_>, name: &GroupName, accepted: &Accepted) -> Done {
    let Some(mut record) = group(step, name)? else {
        return Ok(());
    };
    let newer = record.promised.as_ref().is_none_or(|p| p.0 < accepted.seq);
    if newer && accepted.seq > record.head_seq {
        record.promised = Some((accepted.seq, accepted.chain.clone()));
        put_group(step, &record)?;
    }
    Ok(())
}

/// Forgets a group's record; the journal stays.
///
/// # Errors
/// The store.
pub fn delete_group(step: &Step<'_>, name: &GroupName) -> Done {
    step.delete(GROUPS, name.to_string().as_bytes())
}

/// Every group of this device.
///
/// # Errors
/// The store.
pub fn groups(step: &Step<'_>) -> Done<Vec<GroupRecord>> {
    let found = step.list(GROUPS, b"", b"", usize::MAX)?;
    Ok(found.into_iter().map(|(_, record)| record).collect())
}

/// Keeps the last Welcome of a group as it came, for questions asked later; its keys are gone once it was used.
///
/// # Errors
/// The store.
pub fn put_welcome(step: &Step<'_>, group: &GroupName, frame: &[u8]) -> Done {
    step.put(WELCOMES, group.to_string().as_bytes(), &frame)
}

/// The last Welcome of a group, as it came.
///
/// # Errors
/// The store.
pub fn welcome(step: &Step<'_>, group: &GroupName) -> Done<Option<Vec<u8>>> {
    step.get(WELCOMES, group.to_string().as_bytes())
}

/// Writes an entry.
///
/// # Errors
/// The store.
pub fn put_entry(step: &Step<'_>, group: &GroupName, entry: &JournalEntry) -> Done {
    step.put(JOURNAL, &key(group, &entry.seq.to_be_bytes()), entry)
}

/// One entry.
///
/// # Errors
/// The store.
pub fn entry(step: &Step<'_>, group: &GroupName, seq: u64) -> Done<Option<JournalEntry>> {
    step.get(JOURNAL, &key(group, &seq.to_be_bytes()))
}

/// What the server called settled: it is held to it.
///
/// # Errors
/// The store.
pub fn settled(step: &Step<'_>, name: &GroupName, epoch_seq: u64) -> Done {
    match group(step, name)? {
        Some(mut record) if record.settled_seq < epoch_seq => {
            record.settled(epoch_seq);
            put_group(step, &record)
        }
        _ => Ok(()),
    }
}

/// Entries after a seq, in order.
///
/// # Errors
/// The store.
pub fn entries(
    step: &Step<'_>,
    group: &GroupName,
    after_seq: u64,
    limit: usize,
) -> Done<Vec<JournalEntry>> {
    let after = key(group, &after_seq.to_be_bytes());
    let found = step.list(JOURNAL, &prefix(group), &after, limit)?;
    Ok(found.into_iter().map(|(_, entry)| entry).collect())
}
