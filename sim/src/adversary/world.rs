//! One seed: who is there, what happens, how it ends.

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
    failure::Failure,
    member::{Member, directory::Name},
    store::Store,
};

use super::{
    Outcome,
    actor::{Actor, Answer},
    fault::{Class, Fault},
    grammar::{Ground, Kind, Role, held},
};
use crate::simulation::{
    clock::Clock,
    network::Network,
    people::{Authority, Device},
    service::{DOMAIN, Service},
};

/// What the hostile member's texts begin with.
pub(super) const EVIL: &str = "evil";
/// What honest texts begin with; the number of the device follows.
const HONEST: &str = "honest";
/// Devices: honest ones of three people, an honest one that is not in at first, two of the hostile person.
const DEVICES: u128 = 7;
const MEMBERS: [usize; 4] = [0, 1, VICTIM, HOSTILE];
pub(super) const HONEST_ONES: [usize; 5] = [0, 1, 2, VICTIM, NEWCOMER];
/// The honest member that the hostile one aims at.
pub(super) const VICTIM: usize = 3;
pub(super) const NEWCOMER: usize = 6;
pub(super) const HOSTILE: usize = 4;
pub(super) const SECOND: usize = 5;
/// Objects of the hostile member in one seed.
const OBJECTS: usize = 6;
/// Rounds in which everybody honest is online, until the end.
const QUIET_ROUNDS: u32 = 10;
/// From this round on nothing that an honest device does by itself fails any more.
const CALM_FROM: u32 = 7;

/// How the hostile member's time ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// An honest member removes it.
    Removed,
    /// The Authentication Service revokes it.
    Revoked,
    /// It stays, and is silent.
    Silent,
}

pub(super) struct World {
    pub(super) service: Arc<Service>,
    authority: Authority,
    pub(super) devices: Vec<Device>,
    pub(super) members: Vec<Rc<Member>>,
    pub(super) group: GroupName,
    ground: Ground,
    random: Arc<Mutex<fastrand::Rng>>,
    texts: u64,
    /// How many texts there were when the last round began in which everybody speaks.
    pub(super) texts_before_the_end: u64,
    /// Where proposals stand that no honest member commits.
    pub(super) bad_proposals: BTreeMap<u64, Kind>,
    /// Where Commits stand that every honest member refuses.
    pub(super) bad_commits: BTreeMap<u64, Kind>,
    pub(super) outcome: Outcome,
    pub(super) end: End,
}

/// What an honest device does every day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daily {
    /// Says something.
    Say,
    /// Renews its leaf.
    Update,
    /// Adds a device that is not in.
    Add(usize),
}

impl World {
    pub(super) async fn start(seed: u64, only: &[Kind]) -> anyhow::Result<Self> {
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
            ground: (only.first()).map_or_else(|| Ground::of_seed(seed), |kind| kind.ground()),
            random,
            texts: 0,
            texts_before_the_end: 0,
            bad_proposals: BTreeMap::new(),
            bad_commits: BTreeMap::new(),
            outcome: Outcome::default(),
            end,
        };
        world.found().await?;
        Ok(world)
    }

    async fn found(&mut self) -> anyhow::Result<()> {
        let first = self.members[0].clone();
        let founding = Founding {
            past_epochs: self.ground.past_epochs(),
            external_join: self.ground.external_join(),
            ..Founding::default()
        };
        self.group = first.create_group(founding, None).await?.group;
        let others: Vec<Name> = MEMBERS[1..].iter().map(|n| self.name(*n)).collect();
        first.add(&self.group, &others).await?;
        for n in MEMBERS {
            self.members[n].sync(None).await?;
        }
        self.must(1, Daily::Say).await;
        Ok(())
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn name(&self, n: usize) -> Name {
        (DOMAIN.to_owned(), *self.devices[n].who.device.as_bytes())
    }

    pub(super) fn in_roster(&self, n: usize) -> bool {
        let device = self.devices[n].who.device;
        self.service
            .tables(|tables| tables.rooms[&self.group.id].is_member(device))
    }

    pub(super) fn tell(&mut self, line: String) {
        self.outcome.story.push(line);
    }

    pub(super) fn wrong(&mut self, class: Class, text: String) {
        self.tell(format!("WRONG, {class:?}: {text}"));
        self.outcome.faults.push(Fault { class, text });
    }

    pub(super) fn next_text(&mut self, n: usize) -> String {
        self.texts += 1;
        format!("{HONEST} {n} says {}", self.texts)
    }

    /// The hostile ones emit, and the honest ones go on as they do.
    pub(super) async fn hostilities(
        &mut self,
        only: &[Kind],
        over: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let actor = Actor::new(
            self.members[HOSTILE].clone(),
            self.members[SECOND].clone(),
            self.group.clone(),
            self.members[VICTIM].identity().person.clone(),
            self.members[NEWCOMER].identity().person.clone(),
        );
        let kinds: Vec<Kind> = held().filter(|kind| kind.is_of(self.ground)).collect();
        let mut in_turn = only.iter().copied().cycle();
        for _ in 0..OBJECTS {
            let drawn = self.random(|r| r.choice(kinds.iter().copied()));
            let kind = in_turn.next().or(drawn).context("an empty grammar")?;
            self.emits(&actor, kind).await;
            if over(self) {
                return Ok(());
            }
            for n in HONEST_ONES {
                if self.random(|r| r.bool()) {
                    self.syncs(n, false).await;
                }
            }
            let n = self.random(|r| [0, 1, VICTIM][r.usize(..3)]);
            let daily = match self.random(|r| r.u8(..6)) {
                0..3 => Daily::Say,
                3 => Daily::Update,
                4 => Daily::Add(NEWCOMER),
                _ => Daily::Add(SECOND),
            };
            self.must(n, daily).await;
            self.look_at_states();
            if over(self) {
                return Ok(());
            }
            let pause = self.random(|r| r.u64(1..20));
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
        Ok(())
    }

    async fn emits(&mut self, actor: &Actor, kind: Kind) {
        let victim_is_in = self.in_roster(VICTIM);
        let emitted = match kind.role() {
            Role::Member => actor.emit(kind).await,
            Role::Service => self.service_does(actor, kind).await,
        };
        let answer = match emitted {
            Ok(answer) => answer,
            Err(error) => return self.tell(format!("{}: cannot be made: {error:#}", kind.name())),
        };
        *self.outcome.objects.entry(kind.name()).or_default() += 1;
        self.tell(format!("{}: {answer:?}", kind.name()));
        let refused = match &answer {
            Answer::Accepted(_) => None,
            Answer::Refused(reason, _) => Some(*reason),
        };
        if let Some(wrong) = kind.wrong_answer(refused) {
            self.wrong(Class::Answer, format!("{}: {wrong}", kind.name()));
        }
        let Answer::Accepted(seqs) = answer else {
            return;
        };
        self.outcome.accepted += 1;
        if kind.is_bad_commit() {
            self.bad_commits.extend(seqs.iter().map(|seq| (*seq, kind)));
        }
        if matches!(kind, Kind::CommitGarbage | Kind::PutAloneGarbage) {
            for seq in &seqs {
                self.is_taken_back(*seq).await;
            }
        }
        if kind.is_bad_proposal() && (kind != Kind::ProposeMember || victim_is_in) {
            self.bad_proposals
                .extend(seqs.into_iter().map(|seq| (seq, kind)));
        }
        match kind {
            Kind::LeaveAndStay => self.leaver_goes().await,
            Kind::ClaimEverything => self.stock_is_renewed().await,
            _ => {}
        }
    }

    /// A Commit that nobody can use is taken back when those who cannot use it have been online.
    async fn is_taken_back(&mut self, seq: u64) {
        for n in HONEST_ONES {
            self.syncs(n, false).await;
        }
        tokio::time::sleep(Duration::from_secs(13)).await;
        if self.service.voided_by(&self.group.id, seq).is_none() {
            self.wrong(
                Class::NotTakenBack,
                format!("the spoilt Commit at {seq} stands"),
            );
        }
    }

    /// Whose last resort was given out has another one after it was online.
    async fn stock_is_renewed(&mut self) {
        self.syncs(NEWCOMER, false).await;
        let resold = self.service.resold(self.devices[NEWCOMER].who.device);
        if resold > 0 {
            let text =
                format!("{resold} KeyPackages of {NEWCOMER} were given out and are in stock");
            self.wrong(Class::Resold, text);
        }
    }

    /// Who asked to leave goes before anybody speaks who has read it.
    async fn leaver_goes(&mut self) {
        let n = self.random(|r| [0, 1, VICTIM][r.usize(..3)]);
        self.syncs(n, false).await;
        if self.in_roster(n) && self.must(n, Daily::Say).await && self.in_roster(HOSTILE) {
            let text =
                format!("{n} read that {HOSTILE} asked to leave, and spoke before it was out");
            self.wrong(Class::StillIn, text);
        }
    }

    /// Everything that a device does by itself. `calmly`: nothing of it may fail.
    pub(super) async fn syncs(&mut self, n: usize, calmly: bool) {
        let failed = match self.members[n].sync(None).await {
            Err(failure) => failure.to_string(),
            Ok(synced) if synced.failed.is_empty() => return,
            Ok(synced) => {
                let failed = synced.failed.iter();
                let texts = failed.map(|f| format!("{:?} of {}: {}", f.of, f.item, f.failure));
                texts.collect::<Vec<_>>().join("; ")
            }
        };
        self.tell(format!("{n}: sync: {failed}"));
        if calmly {
            self.wrong(
                Class::Stuck,
                format!("sync of {n} fails again and again: {failed}"),
            );
        }
    }

    fn note<T>(&mut self, n: usize, what: &str, done: Result<T, Failure>) {
        if let Err(failure) = done {
            self.tell(format!("{n}: {what} ended with {failure}"));
        }
    }

    /// From here on nothing comes from the hostile person's devices.
    pub(super) async fn end(&mut self) -> anyhow::Result<()> {
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
    pub(super) async fn quiet(&mut self) {
        self.loses_its_state().await;
        for round in 0..QUIET_ROUNDS {
            if round + 1 == QUIET_ROUNDS {
                self.texts_before_the_end = self.texts;
            }
            for n in HONEST_ONES {
                self.syncs(n, round >= CALM_FROM).await;
                if !self.in_roster(n) {
                    continue;
                }
                if self.end == End::Removed && round >= 2 {
                    self.remove_offender(n).await;
                }
                if round % 2 == 1 {
                    let said = self.tries(n, Daily::Say).await;
                    self.tell(format!("{n}: {said:?}"));
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
            self.syncs(n, true).await;
        }
    }

    /// An honest member loses the state of the group, and comes back with what the service stored.
    async fn loses_its_state(&mut self) {
        let n = self.random(|r| [0, 1, VICTIM][r.usize(..3)]);
        if self.in_roster(n) && self.ground != Ground::Closed {
            let back = self.members[n].rejoin_by_hand(&self.group).await;
            self.note(n, "rejoin", back);
        }
    }

    async fn remove_offender(&mut self, n: usize) {
        let offenders = [HOSTILE, SECOND].into_iter().filter(|m| self.in_roster(*m));
        let names: Vec<Name> = offenders.map(|m| self.name(m)).collect();
        if !names.is_empty() {
            let done = self.members[n].remove(&self.group, &names).await;
            self.note(n, "remove", done);
        }
    }
}

/// The number of a device in its text, where it is an honest one's, and the number of the text.
pub(super) fn speaker(text: &str) -> Option<(usize, u64)> {
    let rest = text.strip_prefix(HONEST)?.trim_start();
    let (device, number) = rest.split_once(" says ")?;
    Some((device.parse().ok()?, number.parse().ok()?))
}

/// The hostile devices.
pub(super) const fn is_hostile(n: usize) -> bool {
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
