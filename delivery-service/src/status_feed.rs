//! Follows the signed status feed of an Authentication Service: a revocation that it says is recorded here, and from then on that device is refused
//! everywhere and its streams end.
//!
//! Each item is verified against the pinned root at its own time, must follow the one before, and is applied together with the cursor in one
//! transaction. Any number of nodes may follow: applying twice changes nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use chancery_proto::{
    auth::v1::{
        DeviceStatus, SignedStatus, StatusChange, StatusHeartbeat, WatchDeviceStatusRequest,
        auth_service_client::AuthServiceClient, device_status, signed_status,
    },
    common::v1::Reason,
    signed,
    status::Refusal,
};
use prost::Message as _;
use service_kit::{
    db::{Db, Transaction, TxError},
    lifecycle::Shutdown,
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    error::Error,
    group::DeviceKey,
    issuers::{Follower, Issuers},
    node::Node,
    store, submit,
};

/// Heartbeats come every 30 s; longer silence than this is an alarm, and the stream is opened anew.
const SILENCE: Duration = Duration::from_secs(95);
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// One feed being followed.
pub struct StatusFeed {
    follower: Arc<Follower>,
    issuers: Issuers,
    db: Db,
    recorded: Arc<Notify>,
    cursor: Cursor,
}

/// Where the feed was read to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cursor {
    history_id: Vec<u8>,
    seq: u64,
}

impl StatusFeed {
    /// Prepares; nothing is sent yet.
    pub fn new(follower: Arc<Follower>, node: &Node) -> Self {
        Self {
            follower,
            issuers: node.issuers.clone(),
            db: node.db.clone(),
            recorded: node.revoked.clone(),
            cursor: Cursor::default(),
        }
    }

    /// Follows until shutdown.
    pub async fn run(mut self, shutdown: Shutdown) {
        let stop = shutdown.soft();
        let mut pause = RETRY.0;
        loop {
            let before = self.cursor.clone();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.follow() => ended,
            };
            if let Err(error) = ended {
                let error = format!("{error:#}");
                tracing::warn!(
                    domain = self.follower.domain(),
                    error,
                    "the status feed stopped"
                );
            }
            pause = if self.cursor == before {
                (pause * 2).min(RETRY.1)
            } else {
                RETRY.0
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.issuers.get(self.follower.domain()).is_some(),
            "its certificates are not known yet"
        );
        self.recall().await?;
        let request = WatchDeviceStatusRequest {
            after_seq: self.cursor.seq,
            history_id: self.cursor.history_id.clone().into(),
        };
        let mut client = AuthServiceClient::new(self.follower.stream_channel());
        let mut stream = match client.watch_device_status(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) if Refusal::from_status(&status).reason == Some(Reason::HistoryChanged) => {
                return self.begin_anew().await;
            }
            Err(status) => return Err(status.into()),
        };
        loop {
            let part = tokio::time::timeout(SILENCE, stream.message())
                .await
                .context("silence")??
                .context("it ended without a reason")?;
            for item in part.items {
                self.take(item).await?;
            }
            metrics::gauge!("chancery_ds_status_feed_seq", "domain" => self.follower.domain().to_owned())
                .set(self.cursor.seq as f64);
        }
    }

    /// What was applied before, perhaps by another node.
    async fn recall(&mut self) -> anyhow::Result<()> {
        let client = self.db.client().await?;
        let known = store::devices::auth_service(&client, self.follower.domain_id()).await?;
        if let Some(known) = known {
            self.cursor = Cursor {
                history_id: known.history_id.unwrap_or_default(),
                seq: known.seq,
            };
        }
        Ok(())
    }

    /// The Authentication Service was restored. All that it says now is applied again; what it no longer says stays recorded.
    async fn begin_anew(&mut self) -> anyhow::Result<()> {
        tracing::error!(
            domain = self.follower.domain(),
            seq = self.cursor.seq,
            "the status feed has another history: its database was restored; reading it from the beginning"
        );
        let client = self.db.client().await?;
        store::devices::forget_feed(&client, self.follower.domain_id()).await?;
        self.cursor = Cursor::default();
        Ok(())
    }

    async fn take(&mut self, item: SignedStatus) -> anyhow::Result<()> {
        match item.content.clone().context("an item without content")? {
            signed_status::Content::Heartbeat(bytes) => {
                let heartbeat = StatusHeartbeat::decode(bytes.clone())?;
                self.verify(&item, signed::HEARTBEAT, &bytes, heartbeat.time_micros)?;
                self.same_history(&heartbeat.history_id)?;
                ensure!(
                    heartbeat.seq == self.cursor.seq,
                    "the feed is at {}, yet only {} came",
                    heartbeat.seq,
                    self.cursor.seq
                );
                Ok(())
            }
            signed_status::Content::Status(bytes) => {
                let status = DeviceStatus::decode(bytes.clone())?;
                self.verify(&item, signed::STATUS, &bytes, status.at_micros)?;
                self.same_history(&status.history_id)?;
                let due = self.cursor.seq + 1;
                ensure!(status.seq == due, "{} came instead of {due}", status.seq);
                self.apply(&status, item.encode_to_vec()).await
            }
        }
    }

    fn same_history(&self, history_id: &[u8]) -> anyhow::Result<()> {
        let known = &self.cursor.history_id;
        ensure!(
            known.is_empty() || known == history_id,
            "an item of another history"
        );
        Ok(())
    }

    fn verify(
        &self,
        item: &SignedStatus,
        label: &str,
        content: &[u8],
        at_micros: i64,
    ) -> anyhow::Result<()> {
        let issuer = self.issuers.get(self.follower.domain());
        let issuer = issuer.context("its certificates are not known")?;
        let key = issuer
            .anchors
            .verify_status(&item.chain, at_micros / 1_000_000)?;
        ensure!(
            signed::verify(&key, label, content, &item.signature),
            "a signature does not verify"
        );
        Ok(())
    }

    async fn apply(&mut self, status: &DeviceStatus, evidence: Vec<u8>) -> anyhow::Result<()> {
        let domain = self.follower.domain_id();
        let effect = self.effect(status)?;
        let (history_id, seq) = (status.history_id.to_vec(), status.seq);
        let cursor = Cursor {
            history_id: history_id.clone(),
            seq,
        };
        self.db
            .run_tx("apply_status", move |tx| {
                let (history_id, evidence) = (history_id.clone(), evidence.clone());
                Box::pin(async move {
                    record(tx, domain, effect, &evidence).await?;
                    store::devices::advance_feed(tx, domain, &history_id, seq).await?;
                    Ok::<_, TxError<Error>>(())
                })
            })
            .await
            .map_err(submit::flatten)?;
        self.cursor = cursor;
        if matches!(effect, Effect::Gone(_)) {
            self.recorded.notify_one();
        }
        Ok(())
    }

    fn effect(&self, status: &DeviceStatus) -> anyhow::Result<Effect> {
        let (domain, id, device) = match &status.subject {
            Some(device_status::Subject::Device(device)) => (&device.domain, &device.id, true),
            Some(device_status::Subject::User(user)) => (&user.domain, &user.id, false),
            None => return Ok(Effect::Nothing),
        };
        ensure!(domain == self.follower.domain(), "of another domain");
        let id = Uuid::from_slice(id).context("the subject's id")?;
        tracing::info!(
            seq = status.seq,
            change = status.change().as_str_name(),
            "a status"
        );
        Ok(match status.change() {
            StatusChange::Revoked | StatusChange::Deleted if device => {
                Effect::Gone(Subject::Device(id))
            }
            StatusChange::Revoked | StatusChange::Deleted => Effect::Gone(Subject::User(id)),
            StatusChange::Suspended => Effect::CutOff(id, false),
            StatusChange::Expired => Effect::CutOff(id, true),
            StatusChange::Reinstated | StatusChange::Renewed => Effect::Back(id),
            StatusChange::Unspecified => Effect::Nothing,
        })
    }
}

/// What a status does here.
#[derive(Debug, Clone, Copy)]
enum Effect {
    /// For ever: refused from now on, and to be removed from every group.
    Gone(Subject),
    /// Until reinstated, or renewed where it expired: refused, and nowhere removed.
    CutOff(Uuid, bool),
    Back(Uuid),
    /// Of a kind that this program does not know.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
enum Subject {
    Device(Uuid),
    User(Uuid),
}

async fn record(
    tx: &Transaction<'_>,
    domain: i16,
    effect: Effect,
    evidence: &[u8],
) -> Result<(), TxError<Error>> {
    match effect {
        Effect::Gone(Subject::Device(device)) => {
            store::revocations::revoke(tx, DeviceKey { domain, device }, evidence).await?;
        }
        Effect::Gone(Subject::User(user)) => {
            for device in store::revocations::devices_of(tx, domain, user).await? {
                store::revocations::revoke(tx, device, evidence).await?;
            }
            store::revocations::suspend(tx, domain, user, false).await?;
        }
        Effect::CutOff(subject, expired) => {
            store::revocations::suspend(tx, domain, subject, expired).await?;
        }
        Effect::Back(subject) => {
            store::revocations::reinstate(tx, domain, subject).await?;
        }
        Effect::Nothing => {}
    }
    Ok(())
}
