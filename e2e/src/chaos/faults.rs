//! Faults, drawn from a seed and done to whatever runs.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use fastrand::Rng;
use rustix::process::Signal;
use serde::Serialize;

use super::{
    history::Event,
    line::{Line, Weather},
    people::{Crowd, Hand},
    servers::{Servers, Service},
};

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SIGKILL for a node of the Delivery Service.
    KillNode,
    /// SIGKILL for the Authentication Service.
    KillAuth,
    /// SIGKILL for PostgreSQL's postmaster.
    KillPostmaster,
    /// SIGKILL for another process of PostgreSQL.
    KillBackend,
    /// SIGKILL for a client's command or its `listen`.
    KillClient,
    /// SIGSTOP, later SIGCONT.
    PauseNode,
    /// The same.
    PauseAuth,
    /// The same for all of PostgreSQL.
    PausePostgres,
    /// The same.
    PauseClient,
    /// Connections of clients end in the middle of a request.
    CutRequests,
    /// Or of an answer.
    CutAnswers,
    /// What clients ask is done, and the answer is lost.
    LoseAnswers,
    /// Everything between clients and a service is late.
    DelayClients,
    /// Connections to PostgreSQL end.
    CutDatabase,
    /// COMMIT is carried out, and the answer is lost.
    LoseCommits,
    /// Everything between a node and PostgreSQL is late.
    DelayDatabase,
    /// PostgreSQL has no room.
    FullDisk,
    /// A client's clock is wrong.
    SkewClock,
}

/// Each kind, and how often it is drawn.
pub const ALL: &[(Kind, u32)] = &[
    (Kind::KillNode, 14),
    (Kind::KillAuth, 4),
    (Kind::KillPostmaster, 4),
    (Kind::KillBackend, 4),
    (Kind::KillClient, 16),
    (Kind::PauseNode, 7),
    (Kind::PauseAuth, 2),
    (Kind::PausePostgres, 3),
    (Kind::PauseClient, 6),
    (Kind::CutRequests, 8),
    (Kind::CutAnswers, 8),
    (Kind::LoseAnswers, 10),
    (Kind::DelayClients, 4),
    (Kind::CutDatabase, 5),
    (Kind::LoseCommits, 6),
    (Kind::DelayDatabase, 5),
    (Kind::FullDisk, 2),
    (Kind::SkewClock, 4),
];

impl Kind {
    fn kills(self) -> bool {
        matches!(
            self,
            Self::KillNode
                | Self::KillAuth
                | Self::KillPostmaster
                | Self::KillBackend
                | Self::KillClient
        )
    }

    fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|name| Some(name.as_str()?.to_owned()))
            .unwrap_or_default()
    }
}

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Done {
    /// Faults that took effect.
    pub faults: u64,
    /// SIGKILLs among them.
    pub kills: u64,
    /// How many of each kind.
    pub kinds: BTreeMap<Kind, u64>,
}

/// A fault finds nobody, say the process is down already: another one is drawn. After so many in a row something is wrong.
const BLANKS: usize = 200;
/// How long a cut waits for somebody to hit.
const AIM: Duration = Duration::from_secs(2);

/// Does so many faults.
///
/// # Errors
/// Nothing is left that a fault could hit, or somebody interrupted it.
pub fn storm(
    servers: &Servers,
    crowd: &Crowd,
    faults: u64,
    mix: &[(Kind, u32)],
    rng: &mut Rng,
    interrupted: &AtomicBool,
) -> anyhow::Result<Done> {
    std::thread::scope(|scope| {
        let mut done = Done::default();
        let mut blanks = 0;
        while done.faults < faults {
            let kind = draw(mix, rng);
            let mut fault = Fault {
                servers,
                crowd,
                rng,
                scope,
            };
            match fault.strike(kind) {
                Some(target) => {
                    crowd.recorder.note(Event::Fault {
                        kind: kind.name(),
                        target,
                    });
                    done.faults += 1;
                    done.kills += u64::from(kind.kills());
                    *done.kinds.entry(kind).or_default() += 1;
                    blanks = 0;
                }
                None => blanks += 1,
            }
            anyhow::ensure!(blanks < BLANKS, "nothing is left that a fault could hit");
            anyhow::ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            std::thread::sleep(Duration::from_millis(rng.u64(50..500)));
        }
        Ok(done)
    })
}

/// The end of all faults: whatever was stopped goes on, the disk has room, the lines are good, the clocks right.
pub fn fair_weather(servers: &Servers, crowd: &Crowd) {
    for line in servers.lines() {
        line.set(Weather::Fair, 0);
    }
    servers.postgres.free_disk();
    servers.postgres.signal(Signal::CONT);
    for service in servers.services() {
        service.signal(Signal::CONT);
    }
    for person in &crowd.people {
        person.skew.store(0, Ordering::Relaxed);
        person.hand.signal(Signal::CONT);
        person.ear.signal(Signal::CONT);
    }
}

fn draw(mix: &[(Kind, u32)], rng: &mut Rng) -> Kind {
    let all: u32 = mix.iter().map(|(_, weight)| weight).sum();
    let mut at = rng.u32(0..all.max(1));
    for (kind, weight) in mix {
        if at < *weight {
            return *kind;
        }
        at -= weight;
    }
    Kind::KillNode
}

struct Fault<'rng, 'scope, 'a> {
    servers: &'a Servers,
    crowd: &'a Crowd,
    rng: &'rng mut Rng,
    scope: &'scope std::thread::Scope<'scope, 'a>,
}

impl<'a> Fault<'_, '_, 'a> {
    /// Does one fault; to whom, or nothing where it found nobody.
    fn strike(&mut self, kind: Kind) -> Option<String> {
        let (servers, down) = (self.servers, self.millis(0..1_500));
        let node = &servers.nodes[self.rng.usize(0..2)];
        match kind {
            Kind::KillNode => hit(node.kill(down), node.name),
            Kind::KillAuth => hit(servers.auth.kill(down), servers.auth.name),
            Kind::KillPostmaster => hit(servers.postgres.kill_postmaster(), "postmaster"),
            Kind::KillBackend => {
                let choice = self.rng.usize(..);
                hit(servers.postgres.kill_child(choice), "postgres")
            }
            Kind::KillClient => self.kill_client(),
            Kind::PauseNode => self.pause(node),
            Kind::PauseAuth => self.pause(&servers.auth),
            Kind::PausePostgres => {
                let stopped = servers.postgres.signal(Signal::STOP);
                self.later(500..3_000, || {
                    servers.postgres.signal(Signal::CONT);
                });
                hit(stopped, "postgres")
            }
            Kind::PauseClient => self.pause_client(),
            Kind::CutRequests => self.cut(&servers.delivery_line, Weather::CutRequest, "delivery"),
            Kind::CutAnswers => self.cut(&servers.delivery_line, Weather::CutAnswer, "delivery"),
            Kind::LoseAnswers => self.cut(&servers.delivery_line, Weather::LoseAnswer, "delivery"),
            Kind::DelayClients => {
                let (line, name) = match self.rng.bool() {
                    true => (&servers.delivery_line, "delivery"),
                    false => (&servers.auth_line, "auth"),
                };
                self.slow(line, name)
            }
            Kind::CutDatabase => {
                let line = &servers.database_lines[self.rng.usize(0..2)];
                self.cut(line, Weather::Cut, "database")
            }
            Kind::LoseCommits => {
                let line = &servers.database_lines[self.rng.usize(0..2)];
                self.cut(line, Weather::LoseCommit, "database")
            }
            Kind::DelayDatabase => {
                let line = &servers.database_lines[self.rng.usize(0..2)];
                self.slow(line, "database")
            }
            Kind::FullDisk => {
                let full = servers.postgres.fill_disk();
                self.later(500..3_000, || servers.postgres.free_disk());
                hit(full, "postgres")
            }
            Kind::SkewClock => self.skew(),
        }
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    /// The end of a fault, beside those that follow.
    fn later(&mut self, millis: std::ops::Range<u64>, end: impl FnOnce() + Send + 'a) {
        let after = self.millis(millis);
        self.scope.spawn(move || {
            std::thread::sleep(after);
            end();
        });
    }

    fn pause(&mut self, service: &'a Service) -> Option<String> {
        let stopped = service.signal(Signal::STOP);
        self.later(200..3_000, || {
            service.signal(Signal::CONT);
        });
        hit(stopped, service.name)
    }

    /// A command of somebody's, or a `listen`.
    fn client(&mut self) -> Option<(&'a Hand, String)> {
        let who = self.rng.choice(&self.crowd.people)?;
        let name = &who.device.name;
        Some(match self.rng.bool() {
            true => (&who.ear, format!("{name} listen")),
            false => (&who.hand, name.clone()),
        })
    }

    fn kill_client(&mut self) -> Option<String> {
        let (hand, name) = self.client()?;
        hit(hand.signal(Signal::KILL), &name)
    }

    fn pause_client(&mut self) -> Option<String> {
        let (hand, name) = self.client()?;
        let stopped = hand.signal(Signal::STOP);
        self.later(200..3_000, || {
            // Another of its commands may run by now: it does not mind.
            hand.signal(Signal::CONT);
        });
        hit(stopped, &name)
    }

    fn skew(&mut self) -> Option<String> {
        let who = self.rng.choice(&self.crowd.people)?;
        // Inside of what is forgiven, and far outside.
        let skew = *self.rng.choice(&[-900, -45, 45, 900])?;
        who.skew.store(skew, Ordering::Relaxed);
        self.later(2_000..6_000, || who.skew.store(0, Ordering::Relaxed));
        Some(format!("{} {skew} s", who.device.name))
    }

    /// Ends a few connections of a line; a fault only when one was hit.
    fn cut(&mut self, line: &'a Line, weather: Weather, name: &str) -> Option<String> {
        line.set(weather, self.rng.usize(1..=4));
        let until = Instant::now() + AIM;
        while line.hits() == 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        hit(line.hits() > 0, name)
    }

    fn slow(&mut self, line: &'a Line, name: &str) -> Option<String> {
        let pause = self.millis(20..250);
        line.set(Weather::Slow(pause), 0);
        self.later(500..2_500, || line.set(Weather::Fair, 0));
        hit(true, name)
    }
}

fn hit(hit: bool, target: &str) -> Option<String> {
    hit.then(|| target.to_owned())
}
