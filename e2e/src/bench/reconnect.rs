//! Everybody comes back at once, as after a cut of the network: what it costs, and what it does to who is there.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chancery_proto::{
    common::v1::GroupRef,
    delivery::v1::{CaughtUp, Cursor, SubscribeRequest, frame},
};
use delivery_service::reading::stream_body as frames;
use prost::Message as _;

use super::{
    Options,
    fanout::{self, Crowd, SUBSCRIBE},
    ground::{DOMAIN, Ground, Groups, Person},
    http2::{Count, Opening, Sign},
    load::{self, rank},
    table::{Table, Target},
};

/// Groups of each device.
const EACH: u32 = 50;
/// One group in so many gets a message, so that each device has ten new ones in fifty groups.
const NEWS: usize = 5;
/// Streams on each connection.
const STREAMS: usize = 20;
/// By then all streams are open, and read what they missed.
const OPENING: Duration = Duration::from_secs(1);
/// Between two messages of who is there all the time.
const PACE: Duration = Duration::from_millis(10);

/// The figures of a reconnect.
///
/// # Errors
/// Something cannot be reached, or breaks.
pub async fn measure(
    ground: &Ground,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let all = options.reconnecting;
    let people = ground.crowd(all).await?;
    let groups = Groups {
        name: "back",
        count: all,
    };
    ground.populate(groups, &ground.people).await?;
    ground.spread(groups, &people, EACH).await?;
    let live = Groups {
        name: "live",
        count: 1,
    };
    ground.populate(live, &ground.people).await?;
    ground.fresh().await?;
    let quiet = live_times(ground, live, tokio::time::sleep(options.measured)).await?;
    let quiet = rank(&micros_after(&quiet, Duration::ZERO), 99);
    let nothing = come_back(ground, groups, &people, live).await?;
    let sender = ground.people.first().context("nobody")?;
    let news: Vec<_> = (0..groups.count)
        .step_by(NEWS)
        .map(|index| load::request(groups.id(index)))
        .collect();
    load::send_all(ground, sender, news).await?;
    let ten = come_back(ground, groups, &people, live).await?;
    let each = |total: f64| total / f64::from(all);
    for (what, back) in [("nothing new", &nothing), ("10 new each", &ten)] {
        let name = format!("{all} devices come back, {EACH} groups, {what}");
        table.report(&format!("{name}: all"), back.seconds * 1e3, "ms");
        table.report(&format!("{name}: node"), each(back.cpu[0]), "us CPU");
        table.report(&format!("{name}: PostgreSQL"), each(back.cpu[1]), "us CPU");
    }
    for (what, back) in [("nothing new", &nothing), ("10 new each", &ten)] {
        table.aim(
            &format!("live delivery p99 while they come back, {what}"),
            rank(&micros_after(&back.live, Duration::ZERO), 99),
            "us",
            quiet,
            Target::AtMost(2.0),
        );
        table.compare(
            &format!("the same from the second second on, {what}"),
            rank(&micros_after(&back.live, OPENING), 99),
            "us",
            quiet,
        );
    }
    Ok(())
}

/// What a reconnect took.
struct Back {
    seconds: f64,
    /// Microseconds of node and PostgreSQL.
    cpu: [f64; 2],
    /// The live deliveries meanwhile.
    live: Vec<Delivery>,
}

/// Of one message, from sending to having it.
struct Delivery {
    /// Since the first one began.
    at: Duration,
    took: Duration,
}

/// Microseconds of those that were sent after so long, sorted.
fn micros_after(live: &[Delivery], start: Duration) -> Vec<f64> {
    let later = live.iter().filter(|delivery| delivery.at >= start);
    let mut micros: Vec<f64> = later.map(|d| d.took.as_secs_f64() * 1e6).collect();
    micros.sort_by(f64::total_cmp);
    micros
}

/// Of the frame that says so.
fn caught_up() -> Sign {
    let mut caught_up = bytes::BytesMut::new();
    frames::put(&mut caught_up, frame::Frame::CaughtUp(CaughtUp {}));
    Sign::Exactly(caught_up.len())
}

async fn come_back(
    ground: &Ground,
    groups: Groups,
    people: &[Person],
    live: Groups,
) -> anyhow::Result<Back> {
    let count = Count::of(caught_up());
    let openings = people
        .iter()
        .zip(0..)
        .map(|(person, index)| opening(person, groups, index))
        .collect();
    let crowd = Crowd {
        connections: people.len() / STREAMS,
        streams: STREAMS,
    };
    let before = ground.cpu()?;
    let began = Instant::now();
    let storm = async {
        let _listeners = fanout::open(ground.address(0)?, crowd, openings, &count).await?;
        count.arrivals(people.len()).await;
        anyhow::Ok(began.elapsed().as_secs_f64())
    };
    let storm = std::pin::pin!(storm);
    let mut seconds = Ok(0.0);
    let live = live_times(ground, live, async { seconds = storm.await }).await?;
    let after = ground.cpu()?;
    let micros = |place: usize| (after[place] - before[place]).as_secs_f64() * 1e6;
    Ok(Back {
        seconds: seconds?,
        cpu: [micros(0), micros(1)],
        live,
    })
}

/// A stream as a client opens it that was away for a while.
fn opening(person: &Person, groups: Groups, index: u32) -> Opening {
    let cursors = (0..EACH).map(|n| Cursor {
        group: Some(GroupRef {
            domain: DOMAIN.into(),
            id: groups
                .id(Ground::spread_index(groups, index, n, EACH))
                .into(),
        }),
        ..Cursor::default()
    });
    let request = SubscribeRequest {
        cursors: cursors.collect(),
        all_groups: true,
        device_inbox: true,
    };
    Opening {
        path: SUBSCRIBE,
        token: person.token.clone(),
        message: request.encode_to_vec(),
    }
}

/// From sending to having it, for messages in a group that two follow, until `meanwhile` is over.
async fn live_times(
    ground: &Ground,
    group: Groups,
    meanwhile: impl Future<Output = ()>,
) -> anyhow::Result<Vec<Delivery>> {
    let [sender, reader] = &ground.people[..] else {
        anyhow::bail!("two people are there");
    };
    let group = group.id(0);
    let count = Count::after(Sign::AtLeast(load::MESSAGE_BYTES), Some(caught_up()));
    let opening = fanout::opening(reader, &group);
    let alone = Crowd {
        connections: 1,
        streams: 1,
    };
    let _listener = fanout::open(ground.address(0)?, alone, vec![opening], &count).await?;
    // What was sent to the group before comes first, in frames of many entries.
    count.ready(1).await;
    let mut client = ground.client(0).await?;
    let mut times = Vec::new();
    let first = Instant::now();
    let messages = async {
        let mut sent = count.arrived();
        loop {
            let began = Instant::now();
            sent += 1;
            client
                .send_message(load::by(sender, load::request(group.clone()))?)
                .await?;
            count.arrivals(sent).await;
            times.push(Delivery {
                at: began - first,
                took: began.elapsed(),
            });
            tokio::time::sleep(PACE).await;
        }
    };
    let broken: anyhow::Result<()> = tokio::select! {
        broken = messages => broken,
        () = meanwhile => Ok(()),
    };
    broken?;
    Ok(times)
}
