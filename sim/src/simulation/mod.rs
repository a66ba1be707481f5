//! Whole groups in one thread, with real members (openmls, store, transport and all), the real decisions, a bad network, and time that a seed decides.
//!
//! | module | what |
//! |---|---|
//! | this one | one seed: operations and faults, then quiet, then the check |
//! | [`check`] | what must be true at the end |
//! | [`people`] | devices, and the authority that revokes them |
//! | [`network`] | gRPC over pipes of memory: late, lost, twice, spoilt |
//! | [`service`] | the Delivery Service without a database |
//! | [`clock`] | time and chance |

pub mod check;
pub mod clock;
pub mod network;
pub mod people;
pub mod service;

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use client_cli::{
    core::{
        CoreError,
        group::{Founding, SUITES},
        records::{self, GroupName},
    },
    failure::Failure,
    member::{Member, directory::Name},
    store::Store,
};
use tokio::task::{JoinHandle, LocalSet};

use clock::Clock;
use network::{Counts, Network};
use people::{Authority, Device};
use service::{DOMAIN, Service};

/// Devices; the last ones are in no group at the beginning.
const DEVICES: u128 = 7;
const MEMBERS: usize = 5;
/// Steps of one seed.
const STEPS: u32 = 60;
/// Rounds until everybody must be where the group is.
const QUIET_ROUNDS: u32 = 12;

/// Every kind of operation and fault; each must happen in a run of enough seeds.
pub const KINDS: [&str; 22] = [
    "send",
    "update",
    "add",
    "remove",
    "leave",
    "rejoin",
    "sync",
    "revoke",
    "crash",
    "restore of an old backup",
    "clock jump",
    "spoil",
    "requests lost",
    "answers lost",
    "requests twice",
    "Commits spoilt",
    "Commits voided",
    "races lost",
    "came back from outside",
    "removed unasked",
    "messages sent again",
    "copies noticed",
];

/// What one seed did.
#[derive(Debug, Default)]
pub struct Played {
    /// How often what happened.
    pub counts: Counts,
    /// What must not be.
    pub faults: Vec<String>,
    /// What happened, in order, for whoever looks into a fault.
    pub story: Vec<String>,
}

/// A message that the service acknowledged.
#[derive(Debug, Clone)]
pub struct Acked {
    /// Where.
    pub seq: u64,
    /// What it says.
    pub text: String,
}

struct Slot {
    device: Device,
    member: Option<Rc<Member>>,
    backup: Option<Store>,
    busy: Option<JoinHandle<()>>,
    /// The head of the log when it was revoked.
    revoked_at: Option<u64>,
    restored: bool,
}

struct World {
    service: Arc<Service>,
    network: Network,
    authority: Authority,
    slots: Vec<Slot>,
    group: GroupName,
    random: Arc<Mutex<fastrand::Rng>>,
    acked: Rc<std::cell::RefCell<Vec<Acked>>>,
    played: Rc<std::cell::RefCell<Played>>,
    texts: u64,
}

/// Plays one seed.
///
/// # Errors
/// The simulation itself cannot go on; what must not be is in [`Played::faults`].
pub fn play(seed: u64) -> anyhow::Result<Played> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut world = World::start(seed).await?;
        for _ in 0..STEPS {
            world.step().await?;
        }
        world.quiet().await?;
        let mut played = std::mem::take(&mut *world.played.borrow_mut());
        played.faults.extend(check::check(&world));
        let counts = world.network.counts();
        for (name, count) in counts {
            *played.counts.entry(name).or_default() += count;
        }
        check::count(&world, &mut played.counts);
        anyhow::Ok(played)
    })
}

fn tell(played: &std::cell::RefCell<Played>, kind: &'static str, line: String) {
    let mut played = played.borrow_mut();
    *played.counts.entry(kind).or_default() += 1;
    played.story.push(line);
}

impl World {
    async fn start(seed: u64) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let authority = Authority::new(clock.clone())?;
        let service = Arc::new(Service::new(clock.clone(), authority.anchors()));
        let network = Network::new(service.clone(), clock.clone(), seed ^ 0x006e_6574);
        let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
        let mut slots = Vec::new();
        for n in 0..DEVICES {
            let device = Device::new(&authority, &network, &random, n)?;
            let member = Rc::new(device.open(Store::in_memory()?)?);
            slots.push(Slot {
                device,
                member: Some(member),
                backup: None,
                busy: None,
                revoked_at: None,
                restored: false,
            });
        }
        let voids = service.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                voids.look_at_failures();
            }
        });
        let mut world = Self {
            service,
            network,
            authority,
            slots,
            group: GroupName {
                domain: DOMAIN.into(),
                id: Vec::new(),
            },
            random,
            acked: Rc::default(),
            played: Rc::default(),
            texts: 0,
        };
        world.gather().await?;
        world.network.set_bad_percent(20);
        Ok(world)
    }

    /// Everybody publishes KeyPackages, the first ones are put into a group.
    async fn gather(&mut self) -> anyhow::Result<()> {
        for n in 0..self.slots.len() {
            self.member(n)?.fill_key_packages(SUITES[0], 6).await?;
        }
        let first = self.member(0)?;
        self.group = first.create_group(Founding::default(), None).await?.group;
        let others: Vec<Name> = (1..MEMBERS).map(|n| self.name(n)).collect();
        first.add(&self.group, &others).await?;
        for n in 0..MEMBERS {
            self.member(n)?.sync(None).await?;
        }
        Ok(())
    }

    fn random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn member(&self, n: usize) -> anyhow::Result<Rc<Member>> {
        self.slots[n].member.clone().context("a device is closed")
    }

    fn name(&self, n: usize) -> Name {
        let device = self.slots[n].device.who.device;
        (DOMAIN.to_owned(), *device.as_bytes())
    }

    fn is_idle(&self, n: usize) -> bool {
        let busy = self.slots[n].busy.as_ref();
        busy.is_none_or(JoinHandle::is_finished)
    }

    fn in_roster(&self, n: usize) -> bool {
        let device = self.slots[n].device.who.device;
        self.service
            .tables(|tables| tables.rooms[&self.group.id].is_member(device))
    }

    async fn step(&mut self) -> anyhow::Result<()> {
        let pause = self.random(|r| Duration::from_millis(r.u64(0..400)));
        tokio::time::sleep(pause).await;
        let n = self.random(|r| r.usize(..self.slots.len()));
        let dice = self.random(|r| r.u8(..100));
        if self.slots[n].revoked_at.is_some() {
            return Ok(());
        }
        if !self.is_idle(n) {
            if dice < 25 {
                self.crash(n).await?;
            }
            return Ok(());
        }
        match dice {
            0..35 => self.say(n),
            35..45 => self.act(n, "update", |member, group| async move {
                member.update(&group).await.map(|_| ())
            }),
            45..53 => self.add(n),
            53..58 => self.remove(n),
            58..61 => self.leave(n),
            61..64 => self.forget(n),
            64..83 => self.act(n, "sync", |member, group| async move {
                member.sync(Some(&group)).await.map(|_| ())
            }),
            83..85 => self.revoke(n)?,
            85..88 => self.back_up(n).await?,
            88..92 => self.restore(n).await?,
            92..95 => self.jump(n),
            95..98 => self.spoil(n),
            _ => self.crash(n).await?,
        }
        Ok(())
    }

    /// Begins an operation of a device; how it ends is noted.
    fn act<F: Future<Output = Result<(), Failure>> + 'static>(
        &mut self,
        n: usize,
        kind: &'static str,
        work: impl FnOnce(Rc<Member>, GroupName) -> F,
    ) {
        let Some(member) = self.slots[n].member.clone() else {
            return;
        };
        tell(&self.played, kind, format!("{n}: {kind}"));
        let (played, future) = (self.played.clone(), work(member, self.group.clone()));
        self.slots[n].busy = Some(tokio::task::spawn_local(async move {
            if let Err(failure) = future.await {
                let line = format!("{n}: {kind} ended with {failure}");
                played.borrow_mut().story.push(line);
            }
        }));
    }

    fn say(&mut self, n: usize) {
        self.texts += 1;
        let text = format!("text {} of {n}", self.texts);
        let acked = self.acked.clone();
        self.act(n, "send", move |member, group| async move {
            let message = [(member.new_id(), text.clone().into_bytes())];
            let sent = member.send(&group, &message).await?;
            let seqs = sent.into_iter().map(|sent| sent.accepted.seq);
            acked.borrow_mut().extend(seqs.map(|seq| Acked {
                seq,
                text: text.clone(),
            }));
            Ok(())
        });
    }

    fn add(&mut self, n: usize) {
        let out = |m: &usize| !self.in_roster(*m) && self.slots[*m].revoked_at.is_none();
        let candidates: Vec<usize> = (0..self.slots.len()).filter(out).collect();
        let Some(m) = self.random(|r| r.choice(candidates)) else {
            return;
        };
        let name = self.name(m);
        self.act(n, "add", move |member, group| async move {
            member.add(&group, &[name]).await.map(|_| ())
        });
    }

    fn remove(&mut self, n: usize) {
        let others = (0..self.slots.len()).filter(|m| *m != n && self.in_roster(*m));
        let others: Vec<usize> = others.collect();
        if others.len() < 3 {
            return;
        }
        let Some(m) = self.random(|r| r.choice(others)) else {
            return;
        };
        let name = self.name(m);
        self.act(n, "remove", move |member, group| async move {
            member.remove(&group, &[name]).await.map(|_| ())
        });
    }

    fn leave(&mut self, n: usize) {
        self.act(n, "leave", |member, group| async move {
            member.leave(&group).await.map(|_| ())
        });
    }

    /// The state of the group is lost, and the device comes back from outside.
    fn forget(&mut self, n: usize) {
        self.act(n, "rejoin", |member, group| async move {
            // Whoever never read its Welcome has nothing to lose.
            member.record(&group)?;
            member.rejoin(&group).await.map(|_| ())
        });
    }

    fn revoke(&mut self, n: usize) -> anyhow::Result<()> {
        let members = (0..self.slots.len()).filter(|m| self.in_roster(*m)).count();
        if members < 4 {
            return Ok(());
        }
        let device = self.slots[n].device.who.device;
        let evidence = self.authority.revocation(device)?;
        let head = |tables: &mut service::Tables| tables.rooms[&self.group.id].head.seq;
        let head = self.service.tables(head);
        self.service.revoke(device, &evidence);
        self.slots[n].revoked_at = Some(head);
        tell(
            &self.played,
            "revoke",
            format!("{n}: revoked at seq {head}"),
        );
        Ok(())
    }

    /// Ends a device's process wherever it is; what its store holds is what it knows then.
    async fn close(&mut self, n: usize) -> anyhow::Result<Store> {
        if let Some(busy) = self.slots[n].busy.take() {
            busy.abort();
            // Cancelled, or done before.
            drop(busy.await);
        }
        let member = self.slots[n].member.take().context("a device is closed")?;
        match Rc::try_unwrap(member) {
            Ok(member) => Ok(member.into_store()),
            Err(_) => bail!("somebody still uses the device"),
        }
    }

    fn open(&mut self, n: usize, store: Store) -> anyhow::Result<()> {
        let member = self.slots[n].device.open(store)?;
        self.slots[n].member = Some(Rc::new(member));
        Ok(())
    }

    async fn crash(&mut self, n: usize) -> anyhow::Result<()> {
        tell(&self.played, "crash", format!("{n}: crashes"));
        let store = self.close(n).await?;
        self.open(n, store)
    }

    async fn back_up(&mut self, n: usize) -> anyhow::Result<()> {
        let store = self.close(n).await?;
        self.slots[n].backup = Some(store.copy()?);
        self.open(n, store)
    }

    async fn restore(&mut self, n: usize) -> anyhow::Result<()> {
        let Some(backup) = self.slots[n].backup.take() else {
            return self.back_up(n).await;
        };
        let line = format!("{n}: restored from an old backup");
        tell(&self.played, "restore of an old backup", line);
        self.close(n).await?;
        self.slots[n].restored = true;
        self.open(n, backup)
    }

    fn jump(&mut self, n: usize) {
        let seconds = self.random(|r| r.i64(-1_200..1_200));
        self.slots[n].device.skewed.skew(seconds);
        tell(
            &self.played,
            "clock jump",
            format!("{n}: clock {seconds:+} s"),
        );
    }

    fn spoil(&mut self, n: usize) {
        tell(
            &self.played,
            "spoil",
            format!("{n}: its next Commit is spoilt"),
        );
        self.network.spoil(self.slots[n].device.who.device);
    }

    /// The network is good, nobody begins anything new, and everybody is online from time to time.
    async fn quiet(&mut self) -> anyhow::Result<()> {
        self.network.set_bad_percent(0);
        self.network.calm();
        for n in 0..self.slots.len() {
            if let Some(busy) = self.slots[n].busy.take() {
                // It ends by itself: every call has its deadline.
                drop(busy.await);
            }
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        for round in 0..QUIET_ROUNDS {
            for n in 0..self.slots.len() {
                if self.slots[n].revoked_at.is_some() {
                    continue;
                }
                let member = self.member(n)?;
                // A person looks at a device that asks for it.
                if round == 2 {
                    self.forgive(&member)?;
                }
                let synced = member.sync(None).await.map(|_| ());
                self.note(n, "sync", synced);
                // Who is in, speaks: that settles, and removes who was revoked.
                if self.in_roster(n) && round % 2 == 1 {
                    let message = [(member.new_id(), format!("quiet {round} {n}").into_bytes())];
                    let sent = member.send(&self.group, &message).await.map(|_| ());
                    self.note(n, "send", sent);
                }
            }
            // Longer than any bar, once.
            let pause = if round == QUIET_ROUNDS / 2 { 310 } else { 13 };
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
        for n in 0..self.slots.len() {
            if self.slots[n].revoked_at.is_none() {
                let synced = self.member(n)?.sync(None).await.map(|_| ());
                self.note(n, "sync", synced);
            }
        }
        Ok(())
    }

    fn note(&self, n: usize, what: &str, done: Result<(), Failure>) {
        if let Err(failure) = done {
            let line = format!("{n}: in the quiet, {what} ended with {failure}");
            self.played.borrow_mut().story.push(line);
        }
    }

    fn forgive(&self, member: &Member) -> anyhow::Result<()> {
        let forgiven = member.step(|step, _| {
            if let Some(mut record) = records::group(step, &self.group)? {
                record.copies = 0;
                records::put_group(step, &record)?;
            }
            Ok::<_, CoreError>(())
        });
        Ok(forgiven?)
    }
}

/// Sums of many seeds.
#[derive(Debug, Default)]
pub struct Sums {
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Seeds with their faults.
    pub failed: Vec<(u64, Played)>,
}

impl Sums {
    /// Adds one seed.
    pub fn add(&mut self, seed: u64, played: Played) {
        for (name, count) in &played.counts {
            *self.counts.entry(name).or_default() += count;
        }
        if !played.faults.is_empty() {
            self.failed.push((seed, played));
        }
    }

    /// Kinds that never happened.
    pub fn never(&self) -> Vec<&'static str> {
        let never = |kind: &&&str| self.counts.get(**kind).is_none_or(|count| *count == 0);
        KINDS.iter().filter(never).copied().collect()
    }
}
