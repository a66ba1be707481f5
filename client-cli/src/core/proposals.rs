//! Proposals of other members: judged when they come, and kept apart from openmls' own queue.
//!
//! openmls looks up in its queue what a Commit names, and takes the whole queue into each Commit that it builds. So every proposal is handed to it
//! before somebody else's Commit is processed, that all members come to the same answer, and before an own Commit is built only those are that may
//! stand in it (RFC 9420 section 12.2). What is refused here is refused by this device as a committer; a Commit that names it is judged by
//! [`super::check`].

use std::collections::{BTreeMap, BTreeSet};

use chancery_proto::{
    mutants::{self, Mutant},
    wire::Write as _,
};
use openmls::prelude::{tls_codec::Serialize as _, *};
use serde::{Deserialize, Serialize};

use super::{
    Context, CoreError, check,
    identity::person_of,
    mls,
    plan::{Plan, usable},
    records::{self, GroupName, GroupRecord, Intent, JournalEntry, Person},
};
use crate::store::Step;

const PROPOSALS: &str = "proposals";
/// Proposals of one epoch that are kept. Every member counts the same log, so a Commit that names a later one fails for all alike.
pub const MAX_PER_EPOCH: usize = 256;

/// A proposal of the current epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Received {
    /// Its place in the log.
    pub seq: u64,
    /// Who proposed it.
    pub proposer: Option<Person>,
    /// Why this device commits it never; `None` where it may.
    pub refused: Option<String>,
    queued: QueuedProposal,
}

impl Received {
    /// The proposal's type as RFC 9420 section 12.1 names it.
    pub fn kind(&self) -> &'static str {
        check::kind(self.queued.proposal())
    }
}

/// Judges a proposal, keeps it, and says in the journal who proposed what this device does not commit.
///
/// # Errors
/// More than [`MAX_PER_EPOCH`] of one epoch, or the store.
pub fn receive(
    step: &Step<'_>,
    context: Context<'_>,
    record: &mut GroupRecord,
    mls_group: &MlsGroup,
    queued: QueuedProposal,
    written: &mut JournalEntry,
) -> Result<(), CoreError> {
    if all(step, &record.name)?.len() >= MAX_PER_EPOCH {
        return Err(CoreError::Malformed(
            "more proposals than an epoch may have".into(),
        ));
    }
    let judged = match mutants::is_on(Mutant::ProposalsUnjudged) {
        true => Ok(()),
        false => judge(step, context, mls_group, &queued),
    };
    let proposer = written.sender.clone().or(written.unverified_sender.clone());
    let refused = match judged {
        Ok(()) => None,
        Err(CoreError::Store(error)) => return Err(error.into()),
        Err(error) => Some(error.to_string()),
    };
    let received = Received {
        seq: written.seq,
        proposer,
        refused,
        queued,
    };
    match &received.refused {
        None => record.proposals.push(received.seq),
        Some(why) => {
            written.note = Some(format!(
                "proposes {}, which this device does not commit: {why}",
                received.kind()
            ));
        }
    }
    put(step, &record.name, &received)
}

/// May a Commit of this device take it in? What [`check::commit`] refuses in a Commit, and what no Commit can do.
fn judge(
    step: &Step<'_>,
    context: Context<'_>,
    mls_group: &MlsGroup,
    queued: &QueuedProposal,
) -> Result<(), CoreError> {
    let Sender::Member(proposer) = queued.sender() else {
        return check::refuse("a proposal from outside");
    };
    match queued.proposal() {
        Proposal::Add(add) => {
            let package = add.key_package();
            let bytes = MlsMessageOut::from(package.clone())
                .to_bytes()
                .map_err(mls)?;
            let suite = mls_group.ciphersuite();
            let (person, _) = usable(step, context, suite, &bytes)
                .map_err(|(_, why)| CoreError::Unusable(why))?;
            let leaf = package.leaf_node();
            check::authority(mls_group, leaf, &check::intermediates(context, leaf))?;
            let is_in = |m: Member| {
                m.signature_key == leaf.signature_key().as_slice()
                    || *leaf.encryption_key() == m.encryption_key.into()
                    || person_of(&m.credential, &m.signature_key).is_ok_and(|p| p == person)
            };
            if mls_group.members().any(is_in) {
                return check::refuse("the device is a member");
            }
            Ok(())
        }
        Proposal::Update(update) => {
            let leaf = update.leaf_node();
            check::same_person(mls_group, *proposer, leaf)?;
            check::authority(mls_group, leaf, &check::intermediates(context, leaf))?;
            let twice = |m: Member| *leaf.encryption_key() == m.encryption_key.into();
            if mls_group.members().any(twice) {
                return check::refuse("its encryption key is in the tree");
            }
            Ok(())
        }
        Proposal::Remove(remove) => check::person_at(mls_group, remove.removed()).map(drop),
        other => check::refuse(check::not_allowed(other)),
    }
}

/// Every proposal of the current epoch, in the order of the log.
///
/// # Errors
/// The store.
pub fn all(step: &Step<'_>, name: &GroupName) -> Result<Vec<Received>, CoreError> {
    let found = step.list(PROPOSALS, &records::prefix(name), b"", usize::MAX)?;
    Ok(found.into_iter().map(|(_, received)| received).collect())
}

fn put(step: &Step<'_>, name: &GroupName, received: &Received) -> Result<(), CoreError> {
    let key = records::key(name, &received.seq.to_be_bytes());
    Ok(step.put(PROPOSALS, &key, received)?)
}

/// Hands proposals to openmls in the place of what it holds.
///
/// # Errors
/// The store.
pub fn hand_over(
    step: &Step<'_>,
    mls_group: &mut MlsGroup,
    proposals: &[Received],
) -> Result<(), CoreError> {
    let storage = step.provider().storage();
    if mls_group.has_pending_proposals() {
        mls_group.clear_pending_proposals(storage)?;
    }
    for received in proposals {
        mls_group.store_pending_proposal(storage, received.queued.clone())?;
    }
    Ok(())
}

/// Forgets the proposals of an epoch that is over.
///
/// # Errors
/// The store.
pub fn forget(step: &Step<'_>, record: &mut GroupRecord) -> Result<(), CoreError> {
    record.proposals.clear();
    for received in all(step, &record.name)? {
        let key = records::key(&record.name, &received.seq.to_be_bytes());
        step.delete(PROPOSALS, &key)?;
    }
    Ok(())
}

/// Commits these no more: no Commit with them could be made, or the server refused it.
///
/// # Errors
/// The store.
pub fn refuse(
    step: &Step<'_>,
    record: &mut GroupRecord,
    seqs: &[u64],
    why: &str,
) -> Result<(), CoreError> {
    for mut received in all(step, &record.name)? {
        if seqs.contains(&received.seq) {
            received.refused = Some(why.to_owned());
            put(step, &record.name, &received)?;
        }
    }
    record.proposals.retain(|seq| !seqs.contains(seq));
    Ok(())
}

/// Those that can stand in one Commit of this device, in the order of the log (RFC 9420 section 12.2): nothing of members that the Commit removes, one
/// Add for each device and key, one Remove for each leaf and never the committer's, the latest Update of a leaf that is not removed.
///
/// # Errors
/// The store.
pub fn to_commit(
    step: &Step<'_>,
    record: &GroupRecord,
    intent: &Intent,
    mls_group: &MlsGroup,
    roster: &[(LeafNodeIndex, Person)],
) -> Result<Vec<Received>, CoreError> {
    let mut offered = all(step, &record.name)?;
    offered.retain(|received| received.refused.is_none());
    if offered.is_empty() || mutants::is_on(Mutant::ProposalConflictsKept) {
        return Ok(offered);
    }
    let own = mls_group.own_leaf_index();
    let mut removed: BTreeSet<LeafNodeIndex> = roster
        .iter()
        .filter(|(_, person)| record.is_to_go(person) || intent.remove.contains(person))
        .map(|(index, _)| *index)
        .collect();
    offered.retain(|r| !matches!(r.queued.sender(), Sender::Member(i) if removed.contains(i)));
    let mut targets = BTreeSet::new();
    offered.retain(|received| match received.queued.proposal() {
        Proposal::Remove(remove) => remove.removed() != own && targets.insert(remove.removed()),
        _ => true,
    });
    removed.extend(targets);
    let mut updates = BTreeMap::new();
    for received in &offered {
        if let (Proposal::Update(_), Sender::Member(index)) =
            (received.queued.proposal(), received.queued.sender())
            && !removed.contains(index)
        {
            updates.insert(*index, received.seq);
        }
    }
    let (mut devices, mut keys) = (BTreeSet::new(), BTreeSet::new());
    offered.retain(|received| match received.queued.proposal() {
        Proposal::Add(add) => first_of_its_kind(add.key_package(), &mut devices, &mut keys),
        Proposal::Update(_) => updates.values().any(|seq| *seq == received.seq),
        _ => true,
    });
    Ok(offered)
}

/// Notes device and keys of an Add; false where one of them was there.
fn first_of_its_kind(
    package: &KeyPackage,
    devices: &mut BTreeSet<Person>,
    keys: &mut BTreeSet<Vec<u8>>,
) -> bool {
    let leaf = package.leaf_node();
    let Ok(person) = person_of(leaf.credential(), leaf.signature_key().as_slice()) else {
        return false;
    };
    let Ok(encryption_key) = leaf.encryption_key().tls_serialize_detached() else {
        return false;
    };
    let (mut signature_key, mut init_key) = (Vec::new(), Vec::new());
    signature_key.put_vector(leaf.signature_key().as_slice());
    init_key.put_vector(package.hpke_init_key().as_slice());
    let its = [signature_key, encryption_key, init_key];
    if devices.contains(&person) || its.iter().any(|key| keys.contains(key)) {
        return false;
    }
    devices.insert(person);
    keys.extend(its);
    true
}

/// What these do to the roster.
///
/// # Errors
/// A leaf that does not say who it is.
pub fn effect(
    proposals: &[Received],
    roster: &[(LeafNodeIndex, Person)],
) -> Result<Plan, CoreError> {
    let mut plan = Plan::default();
    for received in proposals {
        match received.queued.proposal() {
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

/// The new leaves that these bring.
pub fn leaves(proposals: &[Received]) -> impl Iterator<Item = &LeafNode> {
    proposals
        .iter()
        .filter_map(|received| match received.queued.proposal() {
            Proposal::Add(add) => Some(add.key_package().leaf_node()),
            Proposal::Update(update) => Some(update.leaf_node()),
            _ => None,
        })
}
