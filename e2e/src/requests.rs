//! Requests that nobody meant, at running services: built from the contract's descriptors with real ids and real MLS objects in them, then spoilt.
//!
//! Whatever comes, an answer is typed: a refusal that says whose fault it is, never `INTERNAL` (but for bytes that are no message, where gRPC wants that),
//! never a dropped connection; memory stays bounded.

mod make;
mod round;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, BufMut as _, Bytes};
use chancery_proto::status::Refusal;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};

pub use make::Known;
pub use round::round;

/// Calls under way at once.
const CALLERS: usize = 8;
/// A stream that goes on is left after this long.
const LOOK: Duration = Duration::from_millis(200);
/// gRPC's smallest limit for one message among the services, octets.
const SMALLEST_LIMIT: usize = 4 << 20;
/// A call that takes longer than this has hung.
const HUNG: Duration = Duration::from_secs(30);

/// Bytes as they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = buffer.remaining();
        buffer.advance(length);
        Ok(Some(length))
    }
}

/// One service under fire.
#[derive(Debug, Clone)]
pub struct Aim {
    /// Full name.
    pub service: &'static str,
    /// Its address.
    pub url: String,
    /// A token that it accepts.
    pub token: String,
}

/// What came back, by method and status.
#[derive(Debug, Default, serde::Serialize)]
pub struct Summary {
    /// Requests sent.
    pub calls: usize,
    /// Of each method: how many answers of each status.
    pub answers: BTreeMap<String, BTreeMap<String, usize>>,
    /// Answers that no request may get, with the request in hex.
    pub faults: Vec<String>,
}

struct Target {
    method: MethodDescriptor,
    channel: Channel,
    token: String,
}

/// Sends `calls` requests; the same seed makes the same ones.
///
/// # Errors
/// A service cannot be reached at the beginning.
pub async fn storm(aims: &[Aim], known: Known, calls: usize, seed: u64) -> anyhow::Result<Summary> {
    let pool = DescriptorPool::decode(chancery_proto::FILE_DESCRIPTOR_SET)?;
    let mut targets = Vec::new();
    for aim in aims {
        let service = pool.get_service_by_name(aim.service);
        let channel = Endpoint::from_shared(aim.url.clone())?.connect().await?;
        targets.extend(
            service
                .context("no such service")?
                .methods()
                .map(|method| Target {
                    method,
                    channel: channel.clone(),
                    token: aim.token.clone(),
                }),
        );
    }
    let (targets, known) = (Arc::new(targets), Arc::new(known));
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (targets, known, next) = (targets.clone(), known.clone(), next.clone());
        callers.spawn(async move {
            let mut seen = Summary::default();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= calls {
                    return seen;
                }
                let mut random = fastrand::Rng::with_seed(seed.wrapping_add(n as u64));
                let target = &targets[n % targets.len()];
                let request = make::request(&target.method.input(), &known, &mut random);
                let status = call(target, &request, &mut random).await;
                seen.note(target, &request, &status);
            }
        });
    }
    let mut all = Summary::default();
    while let Some(seen) = callers.join_next().await {
        all.add(seen?);
    }
    ensure!(all.calls == calls, "{} of {calls} were sent", all.calls);
    Ok(all)
}

/// One call; every method can be called as one that streams both ways.
async fn call(target: &Target, request: &Bytes, random: &mut fastrand::Rng) -> Status {
    let mut call = Request::new(tokio_stream::iter(vec![
        request.clone();
        random.usize(1..3)
    ]));
    let header = match random.u8(0..10) {
        0 => None,
        1 => Some("Bearer nonsense".to_owned()),
        2 => Some(format!("Bearer {}x", target.token)),
        _ => Some(format!("Bearer {}", target.token)),
    };
    if let Some(header) = header.and_then(|header| header.parse().ok()) {
        call.metadata_mut().insert("authorization", header);
    }
    let path = format!(
        "/{}/{}",
        target.method.parent_service().full_name(),
        target.method.name()
    );
    let mut grpc = Grpc::new(target.channel.clone());
    let talk = async {
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = path
            .parse()
            .map_err(|_| Status::unavailable("a path that is none"))?;
        let mut answers = grpc.streaming(call, path, Raw).await?.into_inner();
        let read = async {
            while answers.message().await?.is_some() {}
            Ok(())
        };
        // A stream that is still open is an answer too.
        tokio::time::timeout(LOOK, read).await.unwrap_or(Ok(()))
    };
    match tokio::time::timeout(HUNG, talk).await {
        Ok(Ok(())) => Status::ok(""),
        Ok(Err(status)) => status,
        Err(_) => Status::unavailable("no answer"),
    }
}

impl Summary {
    fn note(&mut self, target: &Target, request: &Bytes, status: &Status) {
        self.calls += 1;
        let name = target.method.full_name().to_owned();
        let code = format!("{:?}", status.code());
        *self
            .answers
            .entry(name.clone())
            .or_default()
            .entry(code)
            .or_default() += 1;
        let readable = DynamicMessage::decode(target.method.input(), request.clone()).is_ok();
        let reason = Refusal::from_status(status).reason;
        let fault = match status.code() {
            Code::Ok => false,
            // gRPC's own words for bytes that are no message.
            Code::Internal if reason.is_none() => readable,
            Code::Internal | Code::Unknown | Code::Unavailable => true,
            // gRPC's own words for more than it takes in one message.
            Code::OutOfRange if reason.is_none() => request.len() < SMALLEST_LIMIT,
            Code::Unimplemented => false,
            _ => reason.is_none(),
        };
        if fault {
            let hex = hex::encode(request);
            self.faults.push(format!("{name}: {status:?}: {hex}"));
        }
    }

    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.faults.extend(other.faults);
        for (method, codes) in other.answers {
            let sums = self.answers.entry(method).or_default();
            for (code, count) in codes {
                *sums.entry(code).or_default() += count;
            }
        }
    }
}
