//! Devices that were to be added to a group and got no leaf, for want of a KeyPackage that could be used: kept until
//! they are in, or are not wanted any more.
//!
//! Whoever tried to add a device keeps it, and so does everybody who reads of it in the Commit (`CommitInfo.left_out`).
//! Who tried first tries again; the others wait, each for another time, so that a group of thousands does not ask for
//! one KeyPackage at once. A device is forgotten when it is in, when a device of its user was removed after it was left
//! out, when it was revoked, and after [`KEPT_SECONDS`].

use std::collections::BTreeSet;

use chancery_proto::{
    certificate::device_uri,
    commit_info::Member,
    mutants::{self, Mutant},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Context, CoreError,
    records::{self, Done, GroupName, Person},
};
use crate::store::Step;

const SPACE: &str = "left_out";
/// Most devices that are kept for one group: those after them have to be named again.
pub const MOST: usize = 10_000;
/// Most devices of one group that are tried at once.
pub const AT_ONCE: usize = 250;
/// A device that had no KeyPackage for so long is forgotten, seconds: as long as a KeyPackage may live.
pub const KEPT_SECONDS: i64 = 90 * 86_400;
/// The pause of a device that tries again, seconds: the first and the longest.
const PAUSES: (i64, i64) = (60, 6 * 3_600);

/// A device that got no leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The vouching domain.
    pub domain: String,
    /// The device's UUID.
    pub device: [u8; 16],
    /// The user's UUID, where it is known.
    pub user: Option<[u8; 16]>,
    /// Why it got none.
    pub why: String,
    /// Since when, Unix seconds.
    pub since: i64,
    /// This device tried to add it.
    pub own: bool,
    /// How often this device tried again.
    pub tries: u32,
    /// It is not tried before, Unix seconds.
    pub next_at: i64,
}

impl LeftOut {
    /// A device that this one could not add.
    pub fn own(device: &(String, [u8; 16]), user: Option<[u8; 16]>, why: &str, now: i64) -> Self {
        Self {
            domain: device.0.clone(),
            device: device.1,
            user,
            why: why.to_owned(),
            since: now,
            own: true,
            tries: 0,
            next_at: now + PAUSES.0,
        }
    }

    /// `mimi://<domain>/d/<uuid>`.
    pub fn device_uri(&self) -> String {
        device_uri(&self.domain, Uuid::from_bytes(self.device))
    }

    /// The device as a Commit names it, where its user is known.
    pub fn person(&self) -> Option<Person> {
        Some(Person {
            domain: self.domain.clone(),
            user: self.user?,
            device: self.device,
        })
    }

    fn key(&self, group: &GroupName) -> Vec<u8> {
        key(group, &self.domain, &self.device)
    }

    fn is_due(&self, context: Context<'_>, group: &GroupName, eager: bool) -> bool {
        if self.own {
            return eager || context.now >= self.next_at;
        }
        let others_at = self.since + others_wait(context, group, &self.device);
        context.now >= self.next_at.max(others_at)
    }
}

fn key(group: &GroupName, domain: &str, device: &[u8; 16]) -> Vec<u8> {
    records::key(group, &[&device[..], domain.as_bytes()].concat())
}

/// Keeps devices that got no leaf. What this device knows of them better stays.
///
/// # Errors
/// The store.
pub fn note(step: &Step<'_>, group: &GroupName, devices: Vec<LeftOut>) -> Done {
    if devices.is_empty() || mutants::is_on(Mutant::LeftOutForgotten) {
        return Ok(());
    }
    let mut kept = of_group(step, group)?.len();
    for device in devices {
        let key = device.key(group);
        let known: Option<LeftOut> = step.get(SPACE, &key)?;
        let kept_as = match known {
            None if kept >= MOST => continue,
            None => {
                kept += 1;
                device
            }
            Some(known) => LeftOut {
                user: known.user.or(device.user),
                own: known.own || device.own,
                why: if device.own { device.why } else { known.why },
                ..known
            },
        };
        step.put(SPACE, &key, &kept_as)?;
    }
    Ok(())
}

/// What a Commit says, that was accepted at `at` (Unix seconds): whom it left out, whom it added, whose devices it
/// removed.
///
/// # Errors
/// The store.
pub fn committed(
    step: &Step<'_>,
    group: &GroupName,
    left_out: &[Member],
    (added, removed): (&[Person], &[Person]),
    at: i64,
) -> Done {
    let gone = |member: &&Member| {
        let of_user = |p: &Person| p.domain == member.domain && p.user == member.user;
        removed.iter().any(|p| of_user(p) && !added.contains(p))
    };
    let left_out = left_out.iter().filter(|member| !gone(member));
    let left_out = left_out.map(|member| LeftOut {
        domain: member.domain.clone(),
        device: member.device,
        user: Some(member.user),
        why: "it had no KeyPackage that its adder could use".into(),
        since: at,
        own: false,
        tries: 0,
        next_at: at,
    });
    closed(step, group, added, removed)?;
    note(step, group, left_out.collect())
}

/// How long this device leaves it to whoever tried first, seconds: between once and twice the time that it is told,
/// another one for each device.
fn others_wait(context: Context<'_>, group: &GroupName, device: &[u8; 16]) -> i64 {
    let own = &context.identity.person.device;
    let hash = Sha256::digest([&group.id[..], own, device].concat());
    let share = i64::from(u16::from_be_bytes([hash[0], hash[1]]));
    let wait = i64::from(context.left_out_wait_seconds);
    wait + wait * share / i64::from(u16::MAX)
}

/// Devices that are in are left out no more; and whose user lost a device in the group is not brought in by another
/// one.
///
/// # Errors
/// The store.
pub fn closed(step: &Step<'_>, group: &GroupName, added: &[Person], removed: &[Person]) -> Done {
    let gone = removed.iter().filter(|person| !added.contains(person));
    let gone: Vec<&Person> = gone.collect();
    if added.is_empty() && gone.is_empty() {
        return Ok(());
    }
    for left_out in of_group(step, group)? {
        let is = |p: &Person| p.domain == left_out.domain && p.device == left_out.device;
        let of_user = |p: &&Person| p.domain == left_out.domain && Some(p.user) == left_out.user;
        if added.iter().any(is) || gone.iter().any(|p| is(p) || of_user(p)) {
            step.delete(SPACE, &left_out.key(group))?;
        }
    }
    Ok(())
}

/// Forgets devices that are not wanted any more.
///
/// # Errors
/// The store.
pub fn forget(step: &Step<'_>, group: &GroupName, devices: &[(String, [u8; 16])]) -> Done {
    for (domain, device) in devices {
        step.delete(SPACE, &key(group, domain, device))?;
    }
    Ok(())
}

/// Forgets all devices of a group that does not go on.
///
/// # Errors
/// The store.
pub fn forget_all(step: &Step<'_>, group: &GroupName) -> Done {
    for left_out in of_group(step, group)? {
        step.delete(SPACE, &left_out.key(group))?;
    }
    Ok(())
}

/// The devices that are left out of a group.
///
/// # Errors
/// The store.
pub fn of_group(step: &Step<'_>, group: &GroupName) -> Done<Vec<LeftOut>> {
    let found = step.list(SPACE, &records::prefix(group), b"", MOST)?;
    Ok(found.into_iter().map(|(_, left_out)| left_out).collect())
}

/// Takes the devices of a group that are to be tried now, and puts their next time off: a try that fails, or never
/// ends, is not repeated at once. An `eager` caller does not wait with what this device tried itself.
///
/// # Errors
/// The store.
pub fn take_due(
    step: &Step<'_>,
    context: Context<'_>,
    group: &GroupName,
    eager: bool,
) -> Result<Vec<(String, [u8; 16])>, CoreError> {
    let mut due = Vec::new();
    for mut left_out in of_group(step, group)? {
        let key = left_out.key(group);
        if context.now - left_out.since > KEPT_SECONDS {
            step.delete(SPACE, &key)?;
            continue;
        }
        if !left_out.is_due(context, group, eager) || due.len() >= AT_ONCE {
            continue;
        }
        let first = match left_out.own {
            true => PAUSES.0,
            false => PAUSES.0.max(i64::from(context.left_out_wait_seconds)),
        };
        let pause = first << left_out.tries.min(10);
        left_out.next_at = context.now + pause.min(first.max(PAUSES.1));
        left_out.tries = left_out.tries.saturating_add(1);
        due.push((left_out.domain.clone(), left_out.device));
        step.put(SPACE, &key, &left_out)?;
    }
    Ok(due)
}

/// The groups that have somebody to try now.
///
/// # Errors
/// The store.
pub fn groups_due(step: &Step<'_>, context: Context<'_>, eager: bool) -> Done<Vec<GroupName>> {
    let found: Vec<(Vec<u8>, LeftOut)> = step.list(SPACE, b"", b"", usize::MAX)?;
    let mut due = BTreeSet::<GroupName>::new();
    for (key, left_out) in found {
        let group = key.split(|byte| *byte == 0).next().unwrap_or_default();
        let group = std::str::from_utf8(group).ok().and_then(|g| g.parse().ok());
        if let Some(group) = group.filter(|group| left_out.is_due(context, group, eager)) {
            due.insert(group);
        }
    }
    Ok(due.into_iter().collect())
}
