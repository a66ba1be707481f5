//! A hostile member with full keys among honest ones: by seed it emits any object of a grammar, then it is removed, revoked, or silent. Whatever it did,
//! the honest ones who are online agree, speak, and are rid of it; nothing is attributed to anybody who did not say it; nobody honest is named.
//!
//! | module | what |
//! |---|---|
//! | this one | one seed: who is there, what happens, how it ends |
//! | [`grammar`] | kinds of objects |
//! | [`actor`] | the hostile member |
//! | `craft`, `ghost` | bytes that it signs |
//! | `verdict` | what must be true afterwards |
//! | `mutants` | repairs undone one at a time |

pub mod actor;
mod craft;
mod ghost;
pub mod grammar;
pub mod mutants;
mod verdict;

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use client_cli::{
    core::{
        group::{Founding, SUITES},
        records::GroupName,
    },
    member::{Member, directory::Name},
    store::Store,
};
use tokio::task::LocalSet;

use crate::simulation::{
    clock::Clock,
    network::Network,
    people::{Authority, Device},
    service::{DOMAIN, Service},
};
use actor::{Actor, Answer};
use grammar::{Kind, held};

/// What the hostile member's texts begin with.
pub const EVIL: &str = "evil";
/// What honest texts begin with; the number of the device follows.
const HONEST: &str = "honest";
/// Devices: honest ones of three people, an honest one that is not in at first, two of the hostile person.
const DEVICES: u128 = 7;
const MEMBERS: [usize; 4] = [0, 1, 3, HOSTILE];
const HONEST_ONES: [usize; 5] = [0, 1, 2, 3, NEWCOMER];
const NEWCOMER: usize = 6;
const HOSTILE: usize = 4;
const SECOND: usize = 5;
/// Objects of the hostile member in one seed.
const OBJECTS: usize = 6;
/// Rounds in which everybody honest is online, until the end.
const QUIET_ROUNDS: u32 = 10;

/// How the hostile member's time ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// An honest member removes it.
    Removed,
    /// The Authentication Service revokes it.
    Revoked,
    /// It stays, and is silent.
    Silent,
}

/// What one seed did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How often each kind was emitted, refused or not.
    pub objects: BTreeMap<&'static str, u64>,
    /// How many were accepted.
    pub accepted: u64,
    /// Honest members who do not agree, cannot speak, or are not rid of the offender.
    pub bricked: Vec<String>,
    /// What is attributed to somebody who did not say it.
    pub misattributed: Vec<String>,
    /// Honest people who are named as offenders.
    pub honest_blamed: Vec<String>,
    /// What happened, in order.
    pub story: Vec<String>,
}

impl Outcome {
    /// Whether nothing is wrong.
    pub fn good(&self) -> bool {
        self.bricked.is_empty() && self.misattributed.is_empty() && self.honest_blamed.is_empty()
    }
}

struct World {
    service: Arc<Service>,
    authority: Authority,
    devices: Vec<Device>,
    members: Vec<Rc<Member>>,
    group: GroupName,
    random: Arc<Mutex<fastrand::Rng>>,
    texts: u64,
    /// How many texts there were when the last round began in which everybody speaks.
    texts_before_the_end: u64,
    outcome: Outcome,
    end: End,
}

/// Plays one seed; with `only` every object is of this kind.
///
/// # Errors
/// The simulation itself cannot go on; what must not be is in the [`Outcome`].
pub fn play(seed: u64, only: Option<Kind>) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut world = World::start(seed).await?;
        world.hostilities(only).await?;
        world.end().await?;
        world.quiet().await;
        verdict::judge(&mut world);
        anyhow::Ok(world.outcome)
    })
}

impl World {
    async fn start(seed: u64) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let authority = Authority::new(clock.clone())?;
        let service = Arc::new(Service::new(clock.clone(), authority.anchors()));
        let network = Network::new(service.clone(), clock.clone(), seed);
        let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
        let (mut devices, mut members) = (Vec::new(), Vec::new());
        for n in 0..DEVICES {
            let device = Device::new(&authority, &network, &random, n)?;
            let member = Rc::new(device.open(Store::in_memory()?)?);
            member.fill_key_packages(SUITES[0], 6).await?;
            devices.push(device);
            members.push(member);
        }
        let voids = service.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                voids.look_at_failures();
            }
        });
        let end = match random
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .u8(..3)
        {
            0 => End::Removed,
            1 => End::Revoked,
            _ => End::Silent,
        };
        let mut world = Self {
            service,
            authority,
            devices,
            members,
            group: GroupName {
                domain: DOMAIN.into(),
                id: Vec::new(),
            },
            random,
            texts: 0,
            texts_before_the_end: 0,
            outcome: Outcome::default(),
            end,
        };
        let first = world.members[0].clone();
        let founding = Founding::default();
        world.group = first.create_group(founding, None).await?.group;
        let others: Vec<Name> = MEMBERS[1..].iter().map(|n| world.name(*n)).collect();
        first.add(&world.group, &others).await?;
        for n in MEMBERS {
            world.members[n].sync(None).await?;
        }
        world.say(1).await;
        Ok(world)
    }

    fn random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn name(&self, n: usize) -> Name {
        (DOMAIN.to_owned(), *self.devices[n].who.device.as_bytes())
    }

    fn in_roster(&self, n: usize) -> bool {
        let device = self.devices[n].who.device;
        self.service
            .tables(|tables| tables.rooms[&self.group.id].is_member(device))
    }

    fn tell(&mut self, line: String) {
        self.outcome.story.push(line);
    }

    async fn say(&mut self, n: usize) {
        self.texts += 1;
        let text = format!("{HONEST} {n} says {}", self.texts);
        let member = self.members[n].clone();
        let message = [(member.new_id(), text.clone().into_bytes())];
        let sent = member.send(&self.group, &message).await;
        let ended = sent.map(|sent| sent.iter().map(|s| s.accepted.seq).collect::<Vec<_>>());
        self.tell(match ended {
            Ok(seqs) => format!("{text:?} at {seqs:?}"),
            Err(failure) => format!("{text:?}: {failure}"),
        });
    }

    /// The hostile member emits, and the honest ones go on as they do.
    async fn hostilities(&mut self, only: Option<Kind>) -> anyhow::Result<()> {
        let actor = Actor::new(
            self.members[HOSTILE].clone(),
            self.members[SECOND].clone(),
            self.group.clone(),
            self.members[3].identity().person.clone(),
            self.members[NEWCOMER].identity().person.clone(),
        );
        for _ in 0..OBJECTS {
            let drawn = self.random(|r| r.choice(held().collect::<Vec<_>>()));
            let drawn = drawn.context("an empty grammar")?;
            let kind = only.unwrap_or(drawn);
            match actor.emit(kind).await {
                Ok(answer) => {
                    *self.outcome.objects.entry(kind.name()).or_default() += 1;
                    self.outcome.accepted += u64::from(matches!(answer, Answer::Accepted));
                    self.tell(format!("{}: {answer:?}", kind.name()));
                }
                Err(error) => self.tell(format!("{}: cannot be made: {error:#}", kind.name())),
            }
            for n in HONEST_ONES {
                if self.random(|r| r.bool()) {
                    let synced = self.members[n].sync(None).await;
                    self.note(n, "sync", synced.map(|_| ()));
                }
            }
            let n = self.random(|r| [0, 1, 3][r.usize(..3)]);
            match self.random(|r| r.u8(..6)) {
                0..3 => self.say(n).await,
                3 => {
                    let done = self.members[n].update(&self.group).await;
                    self.note(n, "update", done.map(|_| ()));
                }
                4 => self.adds(n, NEWCOMER).await,
                _ => self.adds(n, SECOND).await,
            }
            let pause = self.random(|r| r.u64(1..20));
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
        Ok(())
    }

    async fn adds(&mut self, n: usize, who: usize) {
        if self.in_roster(who) || !self.in_roster(n) {
            return;
        }
        let name = self.name(who);
        let done = self.members[n].add(&self.group, &[name]).await;
        let left_out = done.map(|done| {
            let unusable = format!("{:?}", done.left_out);
            (unusable != "[]").then_some(unusable)
        });
        match left_out {
            Ok(None) => self.tell(format!("{n} added {who}")),
            Ok(Some(why)) => self.tell(format!("{n} left {who} out: {why}")),
            Err(failure) => self.note(n, "add", Err(failure)),
        }
    }

    fn note(&mut self, n: usize, what: &str, done: Result<(), client_cli::failure::Failure>) {
        if let Err(failure) = done {
            self.tell(format!("{n}: {what} ended with {failure}"));
        }
    }

    /// From here on nothing comes from the hostile person's devices.
    async fn end(&mut self) -> anyhow::Result<()> {
        self.tell(format!("the end: {:?}", self.end));
        if self.end == End::Revoked {
            for n in [HOSTILE, SECOND] {
                let device = self.devices[n].who.device;
                let evidence = self.authority.revocation(device)?;
                self.service.revoke(device, &evidence);
            }
        }
        Ok(())
    }

    /// Everybody honest is online, in turn; one of them removes the offender where nobody else ends its time.
    async fn quiet(&mut self) {
        self.loses_its_state().await;
        for round in 0..QUIET_ROUNDS {
            if round + 1 == QUIET_ROUNDS {
                self.texts_before_the_end = self.texts;
            }
            for n in HONEST_ONES {
                let synced = self.members[n].sync(None).await;
                self.note(n, "sync", synced.map(|_| ()));
                if !self.in_roster(n) {
                    continue;
                }
                if self.end == End::Removed && round >= 2 {
                    self.remove_offender(n).await;
                }
                if round % 2 == 1 {
                    self.say(n).await;
                }
            }
            if round == QUIET_ROUNDS / 2 {
                self.loses_its_state().await;
            }
            // Longer than any bar, once.
            let pause = if round == QUIET_ROUNDS / 2 { 310 } else { 13 };
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
        for n in HONEST_ONES {
            let synced = self.members[n].sync(None).await;
            self.note(n, "sync", synced.map(|_| ()));
        }
    }

    /// An honest member loses the state of the group, and comes back with what the service stored.
    async fn loses_its_state(&mut self) {
        let n = self.random(|r| [0, 1, 3][r.usize(..3)]);
        if self.in_roster(n) {
            let back = self.members[n].rejoin_by_hand(&self.group).await;
            self.note(n, "rejoin", back.map(|_| ()));
        }
    }

    async fn remove_offender(&mut self, n: usize) {
        let offenders = [HOSTILE, SECOND].into_iter().filter(|m| self.in_roster(*m));
        let names: Vec<Name> = offenders.map(|m| self.name(m)).collect();
        if !names.is_empty() {
            let done = self.members[n].remove(&self.group, &names).await;
            self.note(n, "remove", done.map(|_| ()));
        }
    }
}

/// Sums of many seeds.
#[derive(Debug, Default)]
pub struct Sums {
    /// How many seeds.
    pub seeds: u64,
    /// How often each kind was emitted.
    pub objects: BTreeMap<&'static str, u64>,
    /// Seeds in which an honest member was stopped, something was misattributed, somebody honest was named.
    pub bricked: u64,
    /// See [`Sums::bricked`].
    pub misattributed: u64,
    /// See [`Sums::bricked`].
    pub honest_blamed: u64,
    /// Seeds with something wrong.
    pub failed: Vec<u64>,
}

impl Sums {
    /// Adds one seed.
    pub fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        for (name, count) in &outcome.objects {
            *self.objects.entry(name).or_default() += count;
        }
        self.bricked += u64::from(!outcome.bricked.is_empty());
        self.misattributed += u64::from(!outcome.misattributed.is_empty());
        self.honest_blamed += u64::from(!outcome.honest_blamed.is_empty());
        if !outcome.good() {
            self.failed.push(seed);
        }
    }

    /// Kinds that never happened.
    pub fn never(&self) -> Vec<&'static str> {
        let names = held().map(Kind::name);
        names
            .filter(|name| !self.objects.contains_key(name))
            .collect()
    }
}

/// The number of a device in its text, where it is an honest one's, and the number of the text.
fn speaker(text: &str) -> Option<(usize, u64)> {
    let rest = text.strip_prefix(HONEST)?.trim_start();
    let (device, number) = rest.split_once(" says ")?;
    Some((device.parse().ok()?, number.parse().ok()?))
}

/// The hostile devices.
const fn is_hostile(n: usize) -> bool {
    n == HOSTILE || n == SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_whose_it_is() {
        assert_eq!(speaker("honest 3 says 7"), Some((3, 7)));
        assert_eq!(speaker("evil 1"), None);
    }
}
