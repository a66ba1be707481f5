//! A hostile member with full keys among honest ones: by seed it emits any object of a grammar, then it is removed, revoked, or silent. In some kinds the
//! Delivery Service is hostile: it withholds, replays, or was restored. Whatever they did, the honest ones who are online agree, speak, and are rid of
//! the offender; nothing is attributed to anybody who did not say it; nobody honest is named.
//!
//! | module | what |
//! |---|---|
//! | this one | one seed, and the sums of many |
//! | [`grammar`] | kinds of objects, and what the service must answer to each |
//! | `world` | who is there, what happens, how it ends |
//! | `daily` | what honest devices do every day, which must succeed meanwhile |
//! | [`actor`] | the hostile member |
//! | `service` | the hostile Delivery Service |
//! | `craft`, `ghost`, `hand` | bytes that the member signs, and its false hand |
//! | `verdict`, [`fault`] | what must be true afterwards |
//! | [`mutants`] | repairs undone, which must be found |

pub mod actor;
mod craft;
mod daily;
pub mod fault;
mod ghost;
pub mod grammar;
mod hand;
pub mod mutants;
mod service;
mod verdict;
mod world;

use std::collections::BTreeMap;

use tokio::task::LocalSet;

use fault::{Class, Fault};
use grammar::{Kind, held};
use world::World;

/// What one seed did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How often each kind was emitted, refused or not.
    pub objects: BTreeMap<&'static str, u64>,
    /// How many were accepted.
    pub accepted: u64,
    /// What must not be.
    pub faults: Vec<Fault>,
    /// What happened, in order.
    pub story: Vec<String>,
}

impl Outcome {
    /// Whether nothing is wrong.
    pub fn good(&self) -> bool {
        self.faults.is_empty()
    }

    /// The first fault of a class.
    pub fn first(&self, class: Class) -> Option<&Fault> {
        self.faults.iter().find(|fault| fault.class == class)
    }
}

/// Plays one seed. The objects are of `only` these kinds, in turn; where there are none, of kinds that the seed draws.
///
/// # Errors
/// The simulation itself cannot go on; what must not be is in the [`Outcome`].
pub fn play(seed: u64, only: &[Kind]) -> anyhow::Result<Outcome> {
    play_until(seed, only, None)
}

/// The same, ended as soon as there is a fault of this class.
///
/// # Errors
/// See [`play`].
fn play_until(seed: u64, only: &[Kind], until: Option<Class>) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut world = World::start(seed, only).await?;
        let over = |world: &World| until.is_some_and(|class| world.outcome.first(class).is_some());
        world.hostilities(only, over).await?;
        if !over(&world) {
            world.end().await?;
            world.quiet().await;
            verdict::judge(&mut world);
        }
        anyhow::Ok(world.outcome)
    })
}

/// Sums of many seeds.
#[derive(Debug, Default)]
pub struct Sums {
    /// How many seeds.
    pub seeds: u64,
    /// How often each kind was emitted.
    pub objects: BTreeMap<&'static str, u64>,
    /// Seeds in which something was wrong, by the name of [`Class::sum`].
    pub wrong: BTreeMap<&'static str, u64>,
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
        for class in Class::ALL {
            self.wrong.entry(class.sum()).or_default();
        }
        let mut sums: Vec<_> = outcome.faults.iter().map(|f| f.class.sum()).collect();
        sums.sort_unstable();
        sums.dedup();
        for sum in sums {
            *self.wrong.entry(sum).or_default() += 1;
        }
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
