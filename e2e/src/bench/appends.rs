//! The append path: messages each second, alone and in crowds, beside what PostgreSQL does by itself.

use std::time::Duration;

use super::{
    Options, bare,
    ground::{Ground, Groups},
    load::{self, Load, rank},
    nats,
    table::{Table, Target},
};

/// Groups of the narrow figures.
const SOME_GROUPS: u32 = 1_000;
/// Streams of a crowd; each has a connection.
const STREAMS: usize = 8;
/// Messages under way on each.
const WINDOW: usize = 128;
/// Messages under way at NATS.
const NATS_UNDER_WAY: usize = 64;
/// Connections of the baselines with one transaction for each message.
const CONNECTIONS: [u32; 3] = [16, 32, 64];
/// Turns of the narrow figure and its baseline.
const TURNS: u32 = 3;
/// Rounds in which sizes of groups take turns: a machine is not equally fast all the time.
const ROUNDS: usize = 6;

fn load(groups: Groups, options: &Options) -> Load {
    Load {
        groups,
        nodes: 1,
        streams: STREAMS,
        window: WINDOW,
        measured: options.measured,
    }
}

/// Every figure of the append path.
///
/// # Errors
/// A message was refused, or something cannot be reached.
pub async fn measure(
    ground: &mut Ground,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let some = Groups {
        name: "some",
        count: SOME_GROUPS,
    };
    ground.populate(some, &ground.people).await?;
    let wanted = |part: &str| part.contains(&options.only);
    if wanted("alone") {
        alone(ground, some, options, table).await?;
    }
    let mut some_rate = None;
    if wanted("crowd") {
        some_rate = Some(crowd(ground, some, options, table).await?);
    }
    if wanted("hot") {
        hot(ground, options, some_rate, table).await?;
    }
    if wanted("wide") {
        wide(ground, options, table).await?;
    }
    if wanted("sizes") {
        sizes(ground, options, table).await?;
    }
    if wanted("nodes") {
        two_nodes(ground, some, options, table).await?;
        ground.nodes.truncate(1);
    }
    if wanted("steady") {
        steady(ground, some, options, table).await?;
        ground.nodes.truncate(1);
    }
    Ok(())
}

/// One message after the other, with nobody else there.
async fn alone(
    ground: &Ground,
    groups: Groups,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let calls = usize::try_from(options.measured.as_millis() / 4)?;
    ground.fresh().await?;
    let base = bare::one_by_one(ground, groups, calls).await?;
    ground.fresh().await?;
    let ours = load::one_by_one(ground, groups, calls).await?;
    let p50 = rank(&base, 50);
    table.aim(
        "one SendMessage alone, p50, by a bare row's p50",
        rank(&ours, 50),
        "us",
        p50,
        Target::AtMost(2.0),
    );
    table.compare(
        "one SendMessage alone, p99, by a bare row's p99",
        rank(&ours, 99),
        "us",
        rank(&base, 99),
    );
    Ok(())
}

/// Many groups, many messages under way.
async fn crowd(
    ground: &Ground,
    groups: Groups,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<f64> {
    // In turns: a machine is not equally fast all the time.
    let (mut batches, mut rate) = (0.0, 0.0);
    let mut cpu = [Duration::ZERO; 2];
    let measured = options.measured / TURNS;
    for _ in 0..TURNS {
        ground.fresh().await?;
        batches += bare::batches(ground, groups, measured).await? / f64::from(TURNS);
        ground.fresh().await?;
        let before = ground.cpu()?;
        let mut load = load(groups, options);
        load.measured = measured;
        rate += load::appends(ground, &load).await? / f64::from(TURNS);
        let after = ground.cpu()?;
        for (sum, (after, before)) in cpu.iter_mut().zip(after.into_iter().zip(before)) {
            *sum += after - before;
        }
    }
    table.aim(
        "appends/s, 1,000 groups, by bare batches of 100",
        rate,
        "1/s",
        batches,
        Target::AtLeast(0.7),
    );
    // The clock of the CPU runs a little longer than that of the rate.
    let messages = rate * (options.measured + load::WARM * TURNS).as_secs_f64();
    for (name, used) in ["node", "PostgreSQL"].into_iter().zip(cpu) {
        let micros = used.as_secs_f64() * 1e6 / messages;
        table.report(&format!("CPU of {name} for each message"), micros, "us");
    }
    let mut best: f64 = 0.0;
    for connections in CONNECTIONS {
        ground.fresh().await?;
        let measured = options.measured / 2;
        best = best.max(bare::singles(ground, groups, connections, measured).await?);
    }
    table.aim(
        "appends/s, 1,000 groups, by a transaction for each",
        rate,
        "1/s",
        best,
        Target::AtLeast(2.5),
    );
    if let Some(program) = nats::program() {
        for (name, sync, target) in [
            ("durable", nats::Sync::Always, Some(Target::AtLeast(5.0))),
            ("as it comes", nats::Sync::Later, None),
        ] {
            let server = nats::Server::start(&program, sync).await?;
            let theirs = server.appends(NATS_UNDER_WAY, options.measured / 2).await?;
            let name = format!("appends/s, 1,000 groups, by JetStream, {name}");
            match target {
                Some(target) => table.aim(&name, rate, "1/s", theirs, target),
                None => table.compare(&name, rate, "1/s", theirs),
            }
        }
    }
    Ok(rate)
}

/// One group.
async fn hot(
    ground: &Ground,
    options: &Options,
    some_rate: Option<f64>,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let hot = Groups {
        name: "hot",
        count: 1,
    };
    ground.populate(hot, &ground.people).await?;
    ground.fresh().await?;
    let singles = bare::singles(ground, hot, 32, options.measured).await?;
    ground.fresh().await?;
    let rate = load::appends(ground, &load(hot, options)).await?;
    table.aim(
        "appends/s, one hot group, by single rows on 32 connections",
        rate,
        "1/s",
        singles,
        Target::AtLeast(10.0),
    );
    if let Some(some_rate) = some_rate {
        table.aim(
            "appends/s, one hot group, by 1,000 groups",
            rate,
            "1/s",
            some_rate,
            Target::AtLeast(0.8),
        );
    }
    Ok(())
}

/// So many groups that each message goes to another.
async fn wide(ground: &Ground, options: &Options, table: &mut Table<'_>) -> anyhow::Result<()> {
    let many = Groups {
        name: "many",
        count: options.many_groups,
    };
    ground.populate(many, &ground.people).await?;
    ground.fresh().await?;
    // So long that each group is met several times: the first time is the dearest.
    let measured = options.measured * 2;
    let batches = bare::batches(ground, many, measured).await?;
    ground.fresh().await?;
    let before = ground.wal_bytes().await?;
    let mut load = load(many, options);
    load.measured = measured;
    let rate = load::appends(ground, &load).await?;
    let written = ground.wal_bytes().await? - before;
    table.aim(
        &format!("appends/s, {} groups, by bare batches", many.count),
        rate,
        "1/s",
        batches,
        Target::AtLeast(0.7),
    );
    let messages = rate * (measured + load::WARM).as_secs_f64();
    table.report("WAL for each message of these", written / messages, "bytes");
    Ok(())
}

/// The size of a group must not count.
async fn sizes(ground: &Ground, options: &Options, table: &mut Table<'_>) -> anyhow::Result<()> {
    const NAMES: [&str; 8] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
    let mut groups = Vec::new();
    for (members, name) in options.members.iter().zip(NAMES) {
        let mut crowd = ground.people.clone();
        // Whoever only sits there needs no token.
        crowd.resize_with(
            (*members as usize).max(crowd.len()),
            super::ground::Person::silent,
        );
        let one = Groups { name, count: 1 };
        ground.populate(one, &crowd).await?;
        groups.push((*members, one, Vec::new()));
    }
    ground.fresh().await?;
    for _ in 0..ROUNDS {
        // There and back: whatever grows meanwhile counts for all alike.
        groups.reverse();
        for (_, one, rates) in &mut groups {
            let mut load = load(*one, options);
            load.measured = options.measured / 5;
            rates.push(load::appends(ground, &load).await?);
        }
    }
    // The fastest round of each: what disturbs a round makes it slower, and is no matter of size.
    let least = |rates: &[f64]| 1e6 / rates.iter().copied().fold(0.0, f64::max);
    groups.sort_by_key(|(members, ..)| *members);
    let base = groups
        .first()
        .map_or(f64::NAN, |(_, _, rates)| least(rates));
    for (members, _, rates) in groups.iter().skip(1) {
        table.aim(
            &format!("time for each append, {members} members, by 2"),
            least(rates),
            "us",
            base,
            Target::AtMost(1.05),
        );
    }
    Ok(())
}

/// A second node on the same machine and the same PostgreSQL.
async fn two_nodes(
    ground: &mut Ground,
    groups: Groups,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    ground.fresh().await?;
    let mut load = load(groups, options);
    let one_node = load::appends(ground, &load).await?;
    ground.add_node().await?;
    ground.fresh().await?;
    load.nodes = 2;
    let rate = load::appends(ground, &load).await?;
    table.compare(
        "appends/s, 1,000 groups, two nodes, by one",
        rate,
        "1/s",
        one_node,
    );
    Ok(())
}

/// Each group gets one message a second, over two nodes that wake each other: whoever did that inside of the transaction would hold up all others.
async fn steady(
    ground: &mut Ground,
    groups: Groups,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    ground.add_node().await?;
    ground.fresh().await?;
    let seconds = u32::try_from(options.measured.as_secs() * 3)?;
    let every = Duration::from_secs(1) / groups.count;
    let times = load::paced(ground, groups, 2, every, groups.count * seconds).await?;
    let p99 = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        rank(&sorted, 99)
    };
    // What comes first finds nodes that know nothing yet.
    let third = times.len() / 3;
    table.aim(
        "1,000 groups with a message a second each, p99, the last third by the second",
        p99(&times[2 * third..]),
        "us",
        p99(&times[third..2 * third]),
        Target::AtMost(1.5),
    );
    Ok(())
}
