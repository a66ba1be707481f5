//! Devices that are online: each has a stream of its own and does what the server asks of it, by the hand of one full member.
//!
//! A member's Commit needs the epoch's secrets, which all members share, and the key of its own leaf. So one full member makes the Commit of any other
//! device whose key it is given: it takes that device's place in the tree for a moment, and forgets what it did there.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, ensure};
use chancery_proto::delivery::v1::{
    Cursor, SubmitCommitRequest, SubscribeRequest, frame, requested::What,
};
use client_cli::{
    core::{
        self, CoreError, group,
        records::{self, GroupName, Intent},
        stage,
    },
    failure::Failure,
    member::{Audience, Delivery, Member},
    transport::{channel, with_token},
};
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinSet};

use super::{cast::Extra, place};

/// Streams on one connection.
const STREAMS: usize = 50;

/// What the server asked of a device: its place in the crowd, and the epoch.
pub type Asked = (usize, u64);

/// Streams that are open.
pub struct Crowd {
    /// What is asked of whom.
    pub asked: mpsc::UnboundedReceiver<Asked>,
    /// Entries that arrived, over all streams.
    pub entries: Arc<AtomicU64>,
    _streams: JoinSet<anyhow::Result<()>>,
}

/// Opens a stream for each of the devices, at a place of the group's log.
///
/// # Errors
/// A refusal, or no connection.
pub async fn follow(devices: &[Extra], at: &Cursor) -> anyhow::Result<Crowd> {
    let (tell, asked) = mpsc::unbounded_channel();
    let entries = Arc::new(AtomicU64::new(0));
    let mut streams = JoinSet::new();
    for (part, some) in devices.chunks(STREAMS).enumerate() {
        let first = some.first().context("nobody")?;
        let auth = channel(&first.profile.auth_url, None, None)?;
        let delivery = channel(&first.profile.delivery_url, None, None)?;
        for (place, extra) in some.iter().enumerate() {
            let token = extra
                .member(&auth, &delivery)?
                .token(Audience::Delivery)
                .await?;
            let request = SubscribeRequest {
                cursors: vec![at.clone()],
                ..SubscribeRequest::default()
            };
            let request = with_token(request, &token)?;
            let mut stream = Delivery::new(delivery.clone())
                .subscribe(request)
                .await?
                .into_inner();
            let (tell, entries, me) = (tell.clone(), entries.clone(), part * STREAMS + place);
            streams.spawn(async move {
                while let Some(frame) = stream.message().await? {
                    match frame.frame {
                        Some(frame::Frame::Requested(requested)) => {
                            if let Some(What::Update(item)) = requested.what {
                                tell.send((me, item.epoch_seq))?;
                            }
                        }
                        Some(frame::Frame::Entries(new)) => {
                            entries.fetch_add(new.entries.len() as u64, Ordering::Relaxed);
                        }
                        _ => {}
                    }
                }
                Ok(())
            });
        }
    }
    Ok(Crowd {
        asked,
        entries,
        _streams: streams,
    })
}

/// The request by which a device renews its leaf, made by a full member that has read up to the head.
///
/// # Errors
/// The device is not in the group, or openmls.
pub fn update_of(
    full: &Member,
    name: &GroupName,
    device: &Extra,
) -> anyhow::Result<SubmitCommitRequest> {
    let mut made = None;
    // Everything that is written is undone.
    let undone = full.step(|step, context| {
        let mut record = records::known(step, name)?;
        let leaf = group::look(step, name, |mls_group| {
            let roster = group::roster(mls_group)?;
            let own = roster.iter().find(|(_, p)| *p == device.identity.person);
            own.map(|(index, _)| *index).ok_or(CoreError::Unknown)
        })?;
        place::take(step, name, leaf)?;
        let update = Intent {
            update: true,
            ..Intent::default()
        };
        let as_device = core::Context {
            identity: &device.identity,
            ..context
        };
        stage::stage(step, as_device, &mut record, &update, full.new_id())?;
        made = record.pending;
        Err::<(), _>(CoreError::Nothing)
    });
    match undone {
        Err(Failure::Core(CoreError::Nothing)) => {}
        Err(failure) => return Err(failure.into()),
        Ok(()) => anyhow::bail!("it was not undone"),
    }
    let made = made.context("no Commit was made")?;
    Ok(SubmitCommitRequest::decode(made.request.as_slice())?)
}

/// Submits such a request with the device's own token; the Commit's bytes. `None` where another Commit was first.
///
/// # Errors
/// A refusal other than a lost race.
pub async fn submit_as(
    device: &Member,
    request: SubmitCommitRequest,
) -> anyhow::Result<Option<usize>> {
    let bundle = request.bundles.first().context("no Commit")?;
    let bytes = bundle.commit.len();
    let answer = device
        .delivery(request, async |mut client, request| {
            Ok(client.submit_commit(request).await?.into_inner())
        })
        .await;
    match answer {
        Ok(answer) => {
            ensure!(answer.value.results.len() == 1, "not one result");
            Ok(Some(bytes))
        }
        Err(Failure::Refused(refusal)) if refusal.code == tonic::Code::Aborted => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}
