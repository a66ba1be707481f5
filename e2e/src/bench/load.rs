//! Messages through gRPC: many under way at once, or one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use chancery_proto::{
    commit_info::MessageData,
    common::v1::GroupRef,
    delivery::v1::{
        SendMessageRequest, SendMessagesResponse, delivery_service_client::DeliveryServiceClient,
        send_messages_response::Answer,
    },
    wire::Write as _,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, transport::Channel};
use uuid::Uuid;

use super::ground::{DOMAIN, Ground, Groups, Person};

/// Octets of one message, as MLS frames it.
pub const MESSAGE_BYTES: usize = 1_024;
/// Application message, RFC 9420 section 6.
const APPLICATION: u8 = 1;
/// Before the clock starts.
pub const WARM: Duration = Duration::from_secs(1);

/// What comes at a node.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where it goes, at random.
    pub groups: Groups,
    /// Nodes that it is spread over: the first so many.
    pub nodes: usize,
    /// Streams, each on a connection of its own.
    pub streams: usize,
    /// Messages under way on each.
    pub window: usize,
    /// Measured for so long.
    pub measured: Duration,
}

/// A `PrivateMessage` of [`MESSAGE_BYTES`]; only its framing is one.
pub fn message(group: &[u8], epoch: u64, id: Uuid) -> Vec<u8> {
    let data = MessageData {
        message_id: Some(*id.as_bytes()),
        commit_info: None,
    };
    let mut message = vec![0, 1, 0, 2];
    message.put_vector(group);
    message.put(&epoch.to_be_bytes());
    message.put(&[APPLICATION]);
    message.put_vector(&data.encode());
    message.put_vector(&[1; 28]);
    // A vector of that length needs two octets for it.
    let rest = MESSAGE_BYTES.saturating_sub(message.len() + 2);
    message.put_vector(&vec![2; rest]);
    message
}

/// A request that appends one message to a group in its first epoch.
pub fn request(group: Vec<u8>) -> SendMessageRequest {
    request_in(group, 0)
}

/// The same in another epoch.
pub fn request_in(group: Vec<u8>, epoch: u64) -> SendMessageRequest {
    let id = Uuid::new_v4();
    SendMessageRequest {
        message_id: id.as_bytes().to_vec().into(),
        message: message(&group, epoch, id).into(),
        group: Some(GroupRef {
            domain: DOMAIN.into(),
            id: group.into(),
        }),
        ..SendMessageRequest::default()
    }
}

/// The request with a person's token.
///
/// # Errors
/// The token is no header.
pub fn by<T>(person: &Person, request: T) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(request);
    let value = format!("Bearer {}", person.token).parse()?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

/// Messages that were acknowledged, each second.
///
/// # Errors
/// A stream breaks, or a message is refused.
pub async fn appends(ground: &Ground, load: &Load) -> anyhow::Result<f64> {
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut streams = tokio::task::JoinSet::new();
    for index in 0..load.streams {
        let client = ground.client(index % load.nodes).await?;
        let person = &ground.people[index % ground.people.len()];
        streams.spawn(stream(
            client,
            person.clone(),
            load.clone(),
            acknowledged.clone(),
        ));
    }
    tokio::select! {
        rate = each_second(&acknowledged, load.measured) => Ok(rate),
        Some(ended) = streams.join_next() => {
            ended??;
            bail!("a stream ended by itself")
        }
    }
}

/// How fast a count grows, once it is warm.
pub async fn each_second(count: &AtomicU64, measured: Duration) -> f64 {
    tokio::time::sleep(WARM).await;
    let (from, began) = (count.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(measured).await;
    (count.load(Ordering::Relaxed) - from) as f64 / began.elapsed().as_secs_f64()
}

/// How long each of `calls` took, one after the other, in microseconds, sorted. The first ones warm it up and do not count.
///
/// # Errors
/// Whatever a call says.
pub async fn times(
    calls: usize,
    mut call: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let warm = calls / 10;
    let mut times = Vec::with_capacity(calls);
    for index in 0..calls + warm {
        let began = Instant::now();
        call().await?;
        if index >= warm {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

async fn stream(
    mut client: DeliveryServiceClient<Channel>,
    person: Person,
    load: Load,
    acknowledged: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let (messages, outgoing) = mpsc::channel(load.window);
    let window = Arc::new(Semaphore::new(load.window));
    let opened = window.clone();
    let sending = tokio::spawn(async move {
        let mut random = fastrand::Rng::new();
        while let Ok(place) = opened.acquire().await {
            place.forget();
            let group = load.groups.id(random.u32(0..load.groups.count));
            if messages.send(request(group)).await.is_err() {
                return;
            }
        }
    });
    let outgoing = by(&person, ReceiverStream::new(outgoing))?;
    let mut answers = client.send_messages(outgoing).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        accepted(answer)?;
        acknowledged.fetch_add(1, Ordering::Relaxed);
        window.add_permits(1);
    }
    sending.abort();
    Ok(())
}

/// Sends all of these, many under way at once.
///
/// # Errors
/// A message is refused.
pub async fn send_all(
    ground: &Ground,
    person: &Person,
    requests: Vec<SendMessageRequest>,
) -> anyhow::Result<()> {
    let outgoing = by(person, tokio_stream::iter(requests))?;
    let mut client = ground.client(0).await?;
    let mut answers = client.send_messages(outgoing).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        accepted(answer)?;
    }
    Ok(())
}

fn accepted(answer: SendMessagesResponse) -> anyhow::Result<()> {
    match answer.answer.context("an answer that is none")? {
        Answer::Accepted(_) => Ok(()),
        Answer::Refused(refusal) => bail!("refused: {refusal:?}"),
    }
}

/// How long each of `calls` unary `SendMessage` took, one after the other, in microseconds, sorted.
///
/// # Errors
/// A message is refused.
pub async fn one_by_one(ground: &Ground, groups: Groups, calls: usize) -> anyhow::Result<Vec<f64>> {
    let mut client = ground.client(0).await?;
    let person = ground.people.first().context("nobody")?;
    times(calls, async || {
        let group = groups.id(fastrand::u32(0..groups.count));
        client.send_message(by(person, request(group))?).await?;
        Ok(())
    })
    .await
}

/// How long each unary `SendMessage` took, in microseconds, in the order in which they were begun: one every `every` to one group after the other, over
/// `nodes` nodes, whether the one before has been answered or not.
///
/// # Errors
/// A message is refused.
pub async fn paced(
    ground: &Ground,
    groups: Groups,
    nodes: usize,
    every: Duration,
    calls: u32,
) -> anyhow::Result<Vec<f64>> {
    let mut clients = Vec::new();
    for node in 0..nodes {
        clients.push(ground.client(node).await?);
    }
    let person = ground.people.first().context("nobody")?;
    let mut ticker = tokio::time::interval(every);
    let mut under_way = Vec::new();
    for (index, client) in (0..calls).zip(clients.iter().cycle()) {
        ticker.tick().await;
        let mut client = client.clone();
        let request = by(person, request(groups.id(index % groups.count)))?;
        under_way.push(tokio::spawn(async move {
            let began = Instant::now();
            client.send_message(request).await?;
            anyhow::Ok(began.elapsed().as_secs_f64() * 1e6)
        }));
    }
    let mut times = Vec::with_capacity(under_way.len());
    for call in under_way {
        times.push(call.await??);
    }
    Ok(times)
}

/// A value of a sorted list by its rank in a hundred.
pub fn rank(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (last * percent + 50) / 100;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
