//! What must be true after each seed.

use std::collections::BTreeMap;

use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{EntryKind, VoidPayload, entry},
};
use client_cli::core::{
    group,
    identity::person_of,
    records::{self, GroupState, JournalEntry},
    recovery::is_taken_back,
};
use prost::Message as _;

use super::{
    fault::Class,
    grammar::Kind,
    world::{EVIL, End, HONEST_ONES, HOSTILE, SECOND, World, is_hostile, speaker},
};

pub(super) fn judge(world: &mut World) {
    let judged = [
        (Class::Disagreeing, agreement(world)),
        (Class::StillIn, offenders(world)),
        (Class::Stuck, of_each(world, unread_welcomes)),
        (Class::Misattributed, of_each(world, attribution)),
        (Class::HonestBlamed, blame(world)),
        (Class::HonestBlamed, of_each(world, accusations)),
        (Class::Unnamed, of_each(world, unnamed)),
    ];
    for (class, texts) in judged {
        for text in texts {
            world.wrong(class, text);
        }
    }
    world.look_at_states();
}

fn of_each(world: &World, judge: impl Fn(&World, usize) -> Vec<String>) -> Vec<String> {
    HONEST_ONES
        .into_iter()
        .flat_map(|n| judge(world, n))
        .collect()
}

impl World {
    /// Each leaf that an honest member's state holds has the key of the device that it names, and no honest member merged what all must refuse.
    pub(super) fn look_at_states(&mut self) {
        for text in of_each(self, impostors) {
            self.wrong(Class::Impostor, text);
        }
        for text in of_each(self, merged) {
            self.wrong(Class::Merged, text);
        }
    }
}

fn impostors(world: &World, n: usize) -> Vec<String> {
    let leaves = world.members[n].step(|step, _| {
        let members = match group::load(step, &world.group) {
            Ok(mls) => mls.members().collect(),
            Err(_) => Vec::new(),
        };
        Ok(members)
    });
    let is_true = |leaf: &openmls::prelude::Member| {
        let person = person_of(&leaf.credential, &leaf.signature_key).ok()?;
        let members = world.members.iter();
        let true_one = members.map(|m| m.identity()).find(|i| i.person == person)?;
        let key = true_one.leaf_key(group::SUITES[0]).ok()?;
        let key = key.credential().signature_key;
        (key.as_slice() == leaf.signature_key).then_some(())
    };
    let leaves = leaves.unwrap_or_default().into_iter();
    let false_ones = leaves.filter(|leaf| is_true(leaf).is_none());
    false_ones
        .map(|leaf| format!("{n} holds a leaf of an impostor at {:?}", leaf.index))
        .collect()
}

/// Honest members are in one epoch, read each other's newest texts, and are rid of the offender.
fn agreement(world: &World) -> Vec<String> {
    let mut faults = Vec::new();
    let mut epochs = BTreeMap::new();
    let inside: Vec<usize> = HONEST_ONES
        .into_iter()
        .filter(|n| world.in_roster(*n))
        .collect();
    for n in &inside {
        let seen = world.members[*n].step(|step, _| {
            let record = records::known(step, &world.group)?;
            let loaded = group::load(step, &world.group).ok();
            let authenticator = loaded.map(|mls| mls.epoch_authenticator().as_slice().to_vec());
            Ok((record, authenticator))
        });
        match seen {
            Ok((record, Some(authenticator))) if record.state == GroupState::Active => {
                let place = (record.epoch_seq, record.head_seq, authenticator);
                epochs.entry(place).or_insert_with(Vec::new).push(*n);
            }
            Ok((record, _)) => {
                faults.push(format!("{n} is in, and its state is {:?}", record.state))
            }
            Err(failure) => faults.push(format!("{n} is in, and knows nothing of it: {failure}")),
        }
    }
    if epochs.len() > 1 {
        let places = epochs
            .iter()
            .map(|((epoch, head, _), who)| format!("{who:?} at {epoch}, {head}"));
        faults.push(format!(
            "they do not agree: {:?}",
            places.collect::<Vec<_>>()
        ));
    }
    for n in &inside {
        let journal = journal(world, *n);
        let deaf_to = |m: &&usize| !journal.iter().any(|entry| is_last_text(world, entry, **m));
        let unheard: Vec<&usize> = inside.iter().filter(deaf_to).collect();
        if !unheard.is_empty() {
            faults.push(format!("{n} does not read what {unheard:?} say at the end"));
        }
    }
    faults
}

/// Those whose time has ended are out.
fn offenders(world: &World) -> Vec<String> {
    let must_go: &[usize] = match world.end {
        End::Silent
            if world
                .outcome
                .objects
                .contains_key(Kind::LeaveAndStay.name()) =>
        {
            &[HOSTILE]
        }
        End::Silent => &[],
        End::Removed | End::Revoked => &[HOSTILE, SECOND],
    };
    if !HONEST_ONES.iter().any(|n| world.in_roster(*n)) {
        return Vec::new();
    }
    let left = must_go.iter().filter(|n| world.in_roster(**n));
    left.map(|n| format!("{n} is still in")).collect()
}

/// What a member said in the last round.
fn is_last_text(world: &World, entry: &JournalEntry, n: usize) -> bool {
    let text = String::from_utf8_lossy(entry.text.as_deref().unwrap_or_default());
    speaker(&text).is_some_and(|(m, number)| m == n && number > world.texts_before_the_end)
}

fn journal(world: &World, n: usize) -> Vec<JournalEntry> {
    let entries =
        world.members[n].step(|step, _| Ok(records::entries(step, &world.group, 0, usize::MAX)?));
    entries.unwrap_or_default()
}

/// Each text is credited to whoever said it, or to nobody.
fn attribution(world: &World, n: usize) -> Vec<String> {
    let device = |m: usize| world.members[m].identity().person.device;
    let wrong = |entry: &JournalEntry| {
        let text = String::from_utf8_lossy(entry.text.as_deref()?).into_owned();
        let sender = entry.sender.as_ref()?;
        let right = match speaker(&text) {
            Some((m, _)) => sender.device == device(m),
            None if text.starts_with(EVIL) => [HOSTILE, SECOND]
                .iter()
                .any(|m| sender.device == device(*m)),
            None => !HONEST_ONES.iter().any(|m| sender.device == device(*m)),
        };
        let at = entry.seq;
        (!right).then(|| format!("{n} read {text:?} at {at} as {}", sender.device_uri()))
    };
    journal(world, n).iter().filter_map(wrong).collect()
}

/// Who is named by an entry that takes a Commit back, and by what the honest ones noted.
fn blame(world: &World) -> Vec<String> {
    let room = world
        .service
        .tables(|tables| tables.rooms[&world.group.id].clone());
    let number = |device: &DeviceRef| {
        let of = |n: &usize| device.id[..] == world.devices[*n].who.device.as_bytes()[..];
        (0..world.devices.len()).find(of)
    };
    let mut blamed = Vec::new();
    for logged in &room.log {
        if logged.entry.kind != EntryKind::Void as u32 {
            continue;
        }
        let Some(entry::Body::Payload(payload)) = &logged.entry.body else {
            continue;
        };
        let void = VoidPayload::decode(payload.as_ref()).unwrap_or_default();
        let named = void.committer.as_ref().and_then(number);
        if named.is_some_and(|n| !is_hostile(n)) {
            let at = logged.entry.seq;
            blamed.push(format!("the VOID at {at} names {named:?}"));
        }
    }
    blamed
}

/// Honest members whose proposals are said not to be committed.
fn accusations(world: &World, n: usize) -> Vec<String> {
    let journal = journal(world, n);
    let refused = journal.iter().filter(|entry| is_refused_proposal(entry));
    let honest = refused.filter_map(|entry| {
        let sender = entry.sender.as_ref()?;
        let members = world.members.iter();
        let number = members
            .map(|m| &m.identity().person)
            .position(|p| p == sender)?;
        (!is_hostile(number)).then(|| format!("{n} names {number} at {}", entry.seq))
    });
    honest.collect()
}

fn is_refused_proposal(entry: &JournalEntry) -> bool {
    let note = entry.note.as_deref().unwrap_or_default();
    note.starts_with("proposes ")
}

/// Bad proposals that a member could read, and of which its journal does not say who proposed them.
fn unnamed(world: &World, n: usize) -> Vec<String> {
    let offender = &world.members[HOSTILE].identity().person;
    let journal = journal(world, n);
    let read = journal
        .iter()
        .filter(|e| e.skipped.is_none() && !is_taken_back(e));
    let unnamed = read.filter_map(|entry| {
        let kind = world.bad_proposals.get(&entry.seq)?;
        let named = entry.sender.as_ref() == Some(offender) && is_refused_proposal(entry);
        (!named).then(|| format!("{n} at {}: {}: {:?}", entry.seq, kind.name(), entry.note))
    });
    unnamed.collect()
}

/// Commits that every member must refuse, and that this one merged.
fn merged(world: &World, n: usize) -> Vec<String> {
    if world.bad_commits.is_empty() {
        return Vec::new();
    }
    let journal = journal(world, n);
    let merged = journal.iter().filter_map(|entry| {
        let kind = world.bad_commits.get(&entry.seq)?;
        let used = entry.skipped.is_none() && !is_taken_back(entry);
        used.then(|| format!("{n} merged at {}: {}", entry.seq, kind.name()))
    });
    merged.collect()
}

/// Welcomes that a device met again and again, and neither used nor put aside.
fn unread_welcomes(world: &World, n: usize) -> Vec<String> {
    let waiting = world.service.welcomes(world.devices[n].who);
    let waiting = waiting.into_iter();
    waiting
        .map(|welcome| {
            format!(
                "{n} has a Welcome at {} that it neither uses nor puts aside",
                welcome.seq
            )
        })
        .collect()
}
