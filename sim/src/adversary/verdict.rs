//! What must be true after each seed.

use std::collections::BTreeMap;

use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{EntryKind, VoidPayload, entry},
};
use client_cli::core::{
    group,
    records::{self, GroupState, JournalEntry},
};
use prost::Message as _;

use super::{EVIL, End, HONEST_ONES, HOSTILE, SECOND, World, grammar::Kind, is_hostile, speaker};

pub(super) fn judge(world: &mut World) {
    let bricked = agreement(world);
    let misattributed: Vec<String> = HONEST_ONES
        .into_iter()
        .flat_map(|n| attribution(world, n))
        .collect();
    let blamed = blame(world);
    world.outcome.bricked = bricked;
    world.outcome.misattributed = misattributed;
    world.outcome.honest_blamed = blamed;
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
    if !inside.is_empty() {
        let left = must_go.iter().filter(|n| world.in_roster(**n));
        faults.extend(left.map(|n| format!("{n} is still in")));
    }
    faults
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
