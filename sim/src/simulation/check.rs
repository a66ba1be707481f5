//! What must be true when everything is quiet: one log, one epoch, everything that was acknowledged read once by everybody, nothing read by who is out.

use std::collections::BTreeMap;

use chancery_proto::{
    chain::{self, ChainInput},
    delivery::v1::{EntryKind, entry},
};
use client_cli::core::{
    group,
    records::{self, GroupState, JournalEntry},
};
use sha2::{Digest as _, Sha256};

use super::{World, network::Counts, service::Room};

/// Why an entry may have been passed over.
const PASSED_OVER: [&str; 5] = [
    "before this device came back",
    "waiting for a rejoin",
    "of an epoch before this device joined",
    "after this device was removed",
    "another copy of this profile wrote it",
];

/// Everything that is wrong.
pub(super) fn check(world: &World) -> Vec<String> {
    let room = world
        .service
        .tables(|tables| tables.rooms[&world.group.id].clone());
    let mut faults = log(&room, &world.group.id);
    faults.extend(agreement(world, &room));
    for n in 0..world.slots.len() {
        faults.extend(reader(world, &room, n));
    }
    faults
}

fn log(room: &Room, id: &[u8]) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut chain, mut ids, mut commits) = (chain::start(), BTreeMap::new(), BTreeMap::new());
    for (place, logged) in room.log.iter().enumerate() {
        let entry = &logged.entry;
        if entry.seq != place as u64 + 1 {
            faults.push(format!("a hole before seq {}", entry.seq));
        }
        let payload = match &entry.body {
            Some(entry::Body::Payload(payload)) => payload.to_vec(),
            _ => Vec::new(),
        };
        chain = chain::next(
            &chain,
            &ChainInput {
                group: id,
                seq: entry.seq,
                epoch_seq: entry.epoch_seq,
                kind: entry.kind,
                message_id: &entry.message_id,
                accepted_at_micros: entry.accepted_at_micros,
                payload_sha256: &Sha256::digest(&payload).into(),
            },
        );
        if chain[..] != entry.chain[..] {
            faults.push(format!("the chain breaks at seq {}", entry.seq));
        }
        if let Some(before) = ids.insert(entry.message_id.clone(), entry.seq) {
            faults.push(format!("one id at seq {before} and {}", entry.seq));
        }
        let commit = entry.kind == EntryKind::Commit as u32
            || entry.kind == EntryKind::ExternalCommit as u32;
        let stands = room
            .voided_by(entry.seq, entry.epoch_seq, entry.kind)
            .is_none();
        if commit
            && stands
            && let Some(before) = commits.insert(entry.epoch, entry.seq)
        {
            faults.push(format!(
                "two Commits of epoch {} stand: seq {before} and {}",
                entry.epoch, entry.seq
            ));
        }
    }
    faults
}

fn agreement(world: &World, room: &Room) -> Vec<String> {
    let mut faults = Vec::new();
    let mut epochs = BTreeMap::new();
    for (n, slot) in world.slots.iter().enumerate() {
        let in_roster = room.is_member(slot.device.who.device);
        if slot.revoked_at.is_some() {
            if in_roster {
                faults.push(format!("{n} was revoked and is still in"));
            }
            continue;
        }
        if !in_roster {
            continue;
        }
        let Some(member) = &slot.member else { continue };
        let seen = member.step(|step, _| {
            let record = records::group(step, &world.group)?;
            let loaded = group::load(step, &world.group);
            let authenticator = loaded
                .ok()
                .map(|group| group.epoch_authenticator().as_slice().to_vec());
            Ok((record, authenticator))
        });
        match seen {
            Ok((Some(record), Some(authenticator))) if record.state == GroupState::Active => {
                if record.pending.is_some() {
                    faults.push(format!("{n} has a Commit under way"));
                }
                epochs
                    .entry((record.epoch_seq, record.head_seq, authenticator))
                    .or_insert_with(Vec::new)
                    .push(n);
            }
            Ok((record, _)) => {
                let state = record.map(|r| (r.state, r.copies, r.head_seq));
                faults.push(format!("{n} is in the roster, and its state is {state:?}"));
            }
            Err(failure) => faults.push(format!("{n}: {failure}")),
        }
    }
    if epochs.len() != 1 {
        let split: Vec<_> = epochs
            .iter()
            .map(|((epoch, head, _), who)| format!("{who:?} at epoch_seq {epoch}, head {head}"))
            .collect();
        faults.push(format!("members do not agree: {split:?}"));
    } else if let Some((epoch_seq, head_seq, _)) = epochs.keys().next()
        && (*epoch_seq, *head_seq) != (room.head.epoch_seq, room.head.seq)
    {
        faults.push(format!(
            "all are at {epoch_seq}, {head_seq}, the group is at {:?}",
            room.head
        ));
    }
    faults
}

fn journal(world: &World, n: usize) -> BTreeMap<u64, JournalEntry> {
    let entries = world.slots[n].member.as_ref().and_then(|member| {
        member
            .step(|step, _| Ok(records::entries(step, &world.group, 0, usize::MAX)?))
            .ok()
    });
    let entries = entries.unwrap_or_default().into_iter();
    entries.map(|entry| (entry.seq, entry)).collect()
}

fn reader(world: &World, room: &Room, n: usize) -> Vec<String> {
    let slot = &world.slots[n];
    let device = slot.device.who.device;
    let journal = journal(world, n);
    let mut faults = Vec::new();
    if let Some(at) = slot.revoked_at
        && let Some(last) = journal.keys().next_back()
        && *last > at
    {
        faults.push(format!("{n} was revoked at seq {at} and read seq {last}"));
    }
    for seq in journal.keys() {
        if !room.holds(device, *seq) {
            faults.push(format!("{n} read seq {seq}, outside its membership"));
        }
    }
    let mut texts = BTreeMap::new();
    for (seq, entry) in &journal {
        let voided = room.voided_by(*seq, entry.epoch_seq, entry.kind).is_some();
        if let Some(text) = entry.text.as_ref().filter(|_| !voided)
            && let Some(before) = texts.insert(text.clone(), *seq)
        {
            let text = String::from_utf8_lossy(text);
            faults.push(format!("{n} read {text:?} at seq {before} and {seq}"));
        }
    }
    if slot.revoked_at.is_some() || !room.is_member(device) {
        return faults;
    }
    for acked in world.acked.borrow().iter() {
        let place = usize::try_from(acked.seq - 1).unwrap_or(usize::MAX);
        let Some(logged) = room.log.get(place) else {
            faults.push(format!("{:?} was acknowledged and is lost", acked.text));
            continue;
        };
        let entry = &logged.entry;
        if room
            .voided_by(entry.seq, entry.epoch_seq, entry.kind)
            .is_some()
            || !room.holds(device, acked.seq)
        {
            continue;
        }
        match journal.get(&acked.seq) {
            Some(read) if read.text.as_deref() == Some(acked.text.as_bytes()) => {}
            Some(read) if may_be_passed_over(read) => {}
            // A restored profile reads on from where its backup was, which may lie before it last joined.
            None if slot.restored => {}
            other => faults.push(format!(
                "{n} did not read {acked:?}: {other:?}; it read {:?} and may read {:?}",
                spans(journal.keys().copied()),
                room.memberships(device),
            )),
        }
    }
    faults
}

/// Runs of numbers.
fn spans(seqs: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for seq in seqs {
        match spans.last_mut() {
            Some((_, end)) if *end + 1 == seq => *end = seq,
            _ => spans.push((seq, seq)),
        }
    }
    spans
}

fn may_be_passed_over(entry: &JournalEntry) -> bool {
    let why = entry.skipped.as_deref().unwrap_or_default();
    PASSED_OVER.iter().any(|allowed| why.starts_with(allowed))
}

/// Counts what can only be seen at the end.
pub(super) fn count(world: &World, counts: &mut Counts) {
    let mut add = |name: &'static str, n: u64| *counts.entry(name).or_default() += n;
    let room = world
        .service
        .tables(|tables| tables.rooms[&world.group.id].clone());
    let kinds = |kind: EntryKind| {
        let of = |logged: &&super::service::Logged| logged.entry.kind == kind as u32;
        room.log.iter().filter(of).count() as u64
    };
    add("entries", room.log.len() as u64);
    add("Commits voided", kinds(EntryKind::Void));
    add("came back from outside", kinds(EntryKind::ExternalCommit));
    let gone = world
        .slots
        .iter()
        .filter(|slot| slot.revoked_at.is_some() && !room.is_member(slot.device.who.device));
    add("removed unasked", gone.count() as u64);
    for n in 0..world.slots.len() {
        for entry in journal(world, n).into_values() {
            let skipped = entry.skipped.as_deref().unwrap_or_default();
            if skipped.starts_with("another copy") {
                add("copies noticed", 1);
            }
            let voided = room
                .voided_by(entry.seq, entry.epoch_seq, entry.kind)
                .is_some();
            if voided && entry.own && entry.text.is_some() {
                add("messages sent again", 1);
            }
        }
    }
    add("races lost", world.service.tables(|tables| tables.stale));
}
