//! `./dev bench`: how fast the log takes messages and how fast they spread, each figure beside a baseline of the same run: the same machine, the same PostgreSQL, the same tables.
//!
//! | module | what |
//! |---|---|
//! | [`table`] | rows: a figure, its baseline, what it was to be |
//! | [`ground`] | PostgreSQL with every promise of durability kept, nodes as processes, people with tokens, groups by the thousand |
//! | [`load`] | messages through gRPC, many under way at once, or one after the other |
//! | [`bare`] | the baselines: the same rows written by plain SQL |
//! | [`appends`] | the figures of the append path |
//! | [`fanout`], [`http2`] | one message to thousands, and who only counts what arrives |
//! | [`reconnect`], [`claims`] | everybody comes back at once, everybody is added at once |
//! | [`stall`] | everybody stands still |
//! | [`stock`] | a PostgreSQL with its own default settings |
//! | [`large`] | a group of thousands, from end to end |
//! | [`broadcast`], [`nats`] | what others do: a plain tonic server, NATS |
//!
//! People and groups are made by SQL and messages by hand: a node reads a message's framing and nothing else of it.

pub mod appends;
pub mod bare;
pub mod broadcast;
pub mod claims;
pub mod fanout;
pub mod ground;
pub mod http2;
pub mod large;
pub mod load;
pub mod nats;
pub mod reconnect;
pub mod stall;
pub mod stock;
pub mod table;

use std::time::Duration;

use crate::programs::Programs;
use ground::Ground;
use table::Table;

/// How long, and how much.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only parts whose name holds this.
    pub only: String,
    /// Targets are relaxed by this factor.
    pub slack: f64,
    /// Each figure is measured for so long.
    pub measured: Duration,
    /// Groups of the wide figures.
    pub many_groups: u32,
    /// Sizes of the groups whose appends are compared; the first is the baseline.
    pub members: Vec<u32>,
    /// Who listens with a connection for each stream.
    pub wide: fanout::Crowd,
    /// Who listens with many streams on each connection.
    pub deep: fanout::Crowd,
    /// Messages that are sent to them.
    pub rounds: usize,
    /// Devices that come back at once.
    pub reconnecting: u32,
    /// Devices whose KeyPackages are claimed at once.
    pub claimed: usize,
    /// Streams of devices that stand still.
    pub standing: usize,
    /// How long they do.
    pub still: Duration,
}

impl Options {
    /// What `docs/performance.md` is made with.
    pub fn whole() -> Self {
        Self {
            only: String::new(),
            slack: 1.0,
            measured: Duration::from_secs(10),
            many_groups: 100_000,
            members: vec![2, 100, 10_000, 100_000],
            wide: fanout::Crowd {
                connections: 5_000,
                streams: 1,
            },
            deep: fanout::Crowd {
                connections: 100,
                streams: 100,
            },
            rounds: 40,
            reconnecting: 10_000,
            claimed: 10_000,
            standing: 2_000,
            still: Duration::from_secs(12),
        }
    }

    /// Short enough for every change: it guards against falling back, and measures nothing well.
    pub fn short() -> Self {
        Self {
            only: String::new(),
            slack: 2.5,
            measured: Duration::from_secs(2),
            many_groups: 10_000,
            members: vec![2, 1_000],
            wide: fanout::Crowd {
                connections: 500,
                streams: 1,
            },
            deep: fanout::Crowd {
                connections: 20,
                streams: 50,
            },
            rounds: 20,
            reconnecting: 1_000,
            claimed: 1_000,
            standing: 200,
            still: Duration::from_secs(3),
        }
    }
}

/// Measures everything; each row is handed out when it is there.
///
/// # Errors
/// Something does not start, or a message was refused.
pub async fn run(
    programs: &Programs,
    options: &Options,
    tell: impl FnMut(&table::Row),
) -> anyhow::Result<Vec<table::Row>> {
    let mut table = Table::new(options.slack, tell);
    let mut ground = Ground::start(programs).await?;
    // Appends first: they are compared with other runs, in tables that hold nothing else.
    appends::measure(&mut ground, options, &mut table).await?;
    let wanted = |part: &str| part.contains(&options.only);
    if wanted("fan-out") {
        fanout::measure(&ground, options, &mut table).await?;
    }
    if wanted("reconnect") {
        reconnect::measure(&ground, options, &mut table).await?;
    }
    if wanted("stall") {
        stall::measure(&ground, options, &mut table).await?;
    }
    if wanted("claims") {
        claims::measure(&ground, options, &mut table).await?;
    }
    Ok(table.rows)
}
