//! One message to thousands: until the last of them has it.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use chancery_proto::{
    common::v1::GroupRef,
    delivery::v1::{Cursor, SendMessageRequest, SendMessageResponse, SubscribeRequest},
};
use prost::Message as _;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::{
    Options, broadcast,
    ground::{self, DOMAIN, Ground, Groups, Person, Running},
    http2::{Count, Opening, Sign, listen},
    load::{self, MESSAGE_BYTES, rank},
    nats,
    table::{Table, Target},
};

/// Opens a stream.
pub const SUBSCRIBE: &str = "/chancery.delivery.v1.DeliveryService/Subscribe";
/// Streams that are opened at the same time: a node has so many requests under way at most.
const OPENED_AT_ONCE: usize = 512;

/// How many listen, and how.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Connections.
    pub connections: usize,
    /// Streams on each.
    pub streams: usize,
}

/// The plain server's process.
struct Plain {
    process: Running,
    address: SocketAddr,
}

impl Plain {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--serve-broadcast")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("no output")?;
        BufReader::new(out).read_line(&mut line)?;
        let address = SocketAddr::from(([127, 0, 0, 1], line.trim().parse()?));
        Ok(Self {
            process: Running(child),
            address,
        })
    }
}

/// Every figure of fan-out.
///
/// # Errors
/// Something cannot be reached, or breaks.
pub async fn measure(
    ground: &Ground,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    for (name, crowd) in [
        ("many connections", options.wide),
        ("many streams", options.deep),
    ] {
        spread(ground, name, crowd, options, table).await?;
    }
    Ok(())
}

async fn spread(
    ground: &Ground,
    name: &str,
    crowd: Crowd,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let Crowd {
        connections,
        streams,
    } = crowd;
    let what = format!("one message, {connections} connections x {streams}");
    let all = connections * streams;
    let plain = plain(crowd, options.rounds).await?;
    let ours = ours(ground, crowd, options.rounds).await?;
    let median = rank(&ours.times, 50) * 1e3;
    table.aim(
        &format!("{what}, p50, by plain tonic"),
        median,
        "ms",
        rank(&plain.times, 50) * 1e3,
        Target::AtMost(1.0 / 1.5),
    );
    if let Some(program) = nats::program() {
        let server = nats::Server::start(&program, nats::Sync::Later).await?;
        let mut times = server.fan_out(connections, streams, options.rounds).await?;
        times.sort_by(f64::total_cmp);
        let theirs = rank(&times, 50) * 1e3;
        table.compare(&format!("{what}, p50, by core NATS"), median, "ms", theirs);
    }
    let each = |total: f64| total / all as f64;
    let in_all = (options.rounds + warm_of(options.rounds)) as f64;
    // Who listens shares the cores with the servers, and costs the same for both.
    table.compare(
        &format!("CPU of the node for each delivery of these, {name}, by plain tonic's"),
        each(ours.cpu_micros / in_all),
        "us",
        each(plain.cpu_micros / in_all),
    );
    table.report(
        &format!("memory of the node for each idle stream, {name}"),
        each(ours.memory_kib),
        "KiB",
    );
    Ok(())
}

/// What one of our nodes did.
struct Ours {
    times: Vec<f64>,
    cpu_micros: f64,
    memory_kib: f64,
}

/// What plain tonic did.
struct Theirs {
    times: Vec<f64>,
    cpu_micros: f64,
}

async fn ours(ground: &Ground, crowd: Crowd, rounds: usize) -> anyhow::Result<Ours> {
    let all = crowd.connections * crowd.streams;
    let people = ground.crowd(u32::try_from(all)?).await?;
    let groups = Groups {
        name: if crowd.streams == 1 {
            "fan-wide"
        } else {
            "fan-deep"
        },
        count: 1,
    };
    ground.populate(groups, &people).await?;
    ground.fresh().await?;
    let group = groups.id(0);
    let before = ground.memory_kib()?;
    let count = Count::of(Sign::AtLeast(MESSAGE_BYTES));
    let openings: Vec<Opening> = people
        .iter()
        .map(|person| opening(person, &group))
        .collect();
    let listeners = open(ground.address(0)?, crowd, openings, &count).await?;
    let memory_kib = ground.memory_kib()? - before;
    let mut client = ground.client(0).await?;
    let sender = people.first().context("nobody")?;
    let cpu = ground.cpu()?[0];
    let mut times = rounds_of(&count, all, rounds, listeners, async || {
        client
            .send_message(load::by(sender, load::request(group.clone()))?)
            .await?;
        Ok(())
    })
    .await?;
    let cpu_micros = (ground.cpu()?[0] - cpu).as_secs_f64() * 1e6;
    times.sort_by(f64::total_cmp);
    Ok(Ours {
        times,
        cpu_micros,
        memory_kib,
    })
}

/// A stream that follows one group from its beginning.
pub fn opening(person: &Person, group: &[u8]) -> Opening {
    let request = SubscribeRequest {
        cursors: vec![Cursor {
            group: Some(GroupRef {
                domain: DOMAIN.into(),
                id: group.to_vec().into(),
            }),
            ..Cursor::default()
        }],
        ..SubscribeRequest::default()
    };
    Opening {
        path: SUBSCRIBE,
        token: person.token.clone(),
        message: request.encode_to_vec(),
    }
}

async fn plain(crowd: Crowd, rounds: usize) -> anyhow::Result<Theirs> {
    let server = Plain::start()?;
    let count = Count::of(Sign::AtLeast(MESSAGE_BYTES));
    let all = crowd.connections * crowd.streams;
    let opening = Opening {
        path: broadcast::LISTEN,
        token: String::new(),
        message: Vec::new(),
    };
    let listeners = open(server.address, crowd, vec![opening; all], &count).await?;
    let url = format!("http://{}", server.address);
    let channel = Channel::from_shared(url)?.connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    let cpu = || ground::cpu_of(&server.process.0.id().to_string());
    let before = cpu()?;
    let mut times = rounds_of(&count, all, rounds, listeners, async || {
        client.ready().await?;
        let request = SendMessageRequest {
            message: vec![2; MESSAGE_BYTES].into(),
            ..SendMessageRequest::default()
        };
        let codec = ProstCodec::<SendMessageRequest, SendMessageResponse>::default();
        let path = http::uri::PathAndQuery::from_static(broadcast::SEND);
        client
            .unary(tonic::Request::new(request), path, codec)
            .await?;
        Ok(())
    })
    .await?;
    let cpu_micros = (cpu()? - before).as_secs_f64() * 1e6;
    times.sort_by(f64::total_cmp);
    Ok(Theirs { times, cpu_micros })
}

/// Connections that are open as long as it.
pub type Listeners = tokio::task::JoinSet<anyhow::Result<()>>;

/// Opens all streams, and waits until each was answered.
///
/// # Errors
/// A stream is refused, or a connection breaks.
pub async fn open(
    address: SocketAddr,
    crowd: Crowd,
    openings: Vec<Opening>,
    count: &Arc<Count>,
) -> anyhow::Result<Listeners> {
    let mut listeners = Listeners::new();
    let mut answered = 0;
    for part in openings.chunks(OPENED_AT_ONCE / crowd.streams * crowd.streams) {
        for connection in part.chunks(crowd.streams) {
            let listener = listen(address, connection, count.clone()).await?;
            listeners.spawn(async move { listener.await? });
        }
        answered += part.len();
        tokio::select! {
            () = count.answers(answered) => {}
            Some(ended) = listeners.join_next() => ended??,
        }
    }
    Ok(listeners)
}

/// Rounds that warm everything up.
fn warm_of(rounds: usize) -> usize {
    rounds / 5 + 1
}

/// For each round the seconds from sending until the last has it; the first ones warm everything up and do not count.
async fn rounds_of(
    count: &Count,
    all: usize,
    rounds: usize,
    mut listeners: Listeners,
    mut send: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let warm = warm_of(rounds);
    let mut times = Vec::with_capacity(rounds);
    for round in 1..=rounds + warm {
        let began = Instant::now();
        send().await?;
        tokio::select! {
            () = count.arrivals(all * round) => {}
            Some(ended) = listeners.join_next() => ended??,
        }
        if round > warm {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}
