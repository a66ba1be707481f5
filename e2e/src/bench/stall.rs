//! Devices stand still for a while, as they do when a network stalls: nobody is to lose its stream by that, or all would come back at once.

use std::time::Instant;

use anyhow::Context as _;

use super::{
    Options,
    fanout::{self, Crowd},
    ground::{Ground, Groups},
    http2::{Count, Sign},
    load::{self, MESSAGE_BYTES},
    table::{Table, Target},
};

/// Streams on each connection.
const STREAMS: usize = 20;

/// The figures of a stall.
///
/// # Errors
/// Something cannot be reached, or breaks.
pub async fn measure(
    ground: &Ground,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let crowd = Crowd {
        connections: options.standing / STREAMS,
        streams: STREAMS,
    };
    let all = crowd.connections * crowd.streams;
    let people = ground.crowd(u32::try_from(all)?).await?;
    let groups = Groups {
        name: "still",
        count: 1,
    };
    ground.populate(groups, &people).await?;
    ground.fresh().await?;
    let group = groups.id(0);
    let count = Count::of(Sign::AtLeast(MESSAGE_BYTES));
    let openings = people.iter().map(|p| fanout::opening(p, &group)).collect();
    let mut listeners = fanout::open(ground.address(0)?, crowd, openings, &count).await?;
    let mut client = ground.client(0).await?;
    let sender = people.first().context("nobody")?;
    let (mut times, mut lost) = (Vec::new(), 0);
    for round in 1..=3 {
        if round == 3 {
            count.hold();
            tokio::time::sleep(options.still).await;
            count.release();
        }
        let began = Instant::now();
        let message = load::by(sender, load::request(group.clone()))?;
        client.send_message(message).await?;
        loop {
            tokio::select! {
                () = count.arrivals(all * round - lost) => break,
                Some(_) = listeners.join_next() => lost += STREAMS,
            }
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    // The first one warms everything up.
    let [_, before, after] = times[..] else {
        anyhow::bail!("three rounds");
    };
    let still = options.still.as_secs();
    table.aim(
        &format!("streams that are left after all stood still for {still} s"),
        (all - lost) as f64,
        "",
        all as f64,
        Target::AtLeast(1.0),
    );
    let name = format!("one message to all {all} right after that, by one before");
    table.compare(&name, after, "ms", before);
    Ok(())
}
