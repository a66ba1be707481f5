//! Follows the signed status feed of an Authentication Service: a revocation that it says is recorded here, and from then on that device is refused
//! everywhere and its streams end.
//!
//! Each item is verified against the accepted roots at its own time, must follow the one before ([`cursor`]), and is applied together with the cursor in
//! one transaction. Where the feed has another past than the one that was applied, that is an alarm, and all of it is read again: what either past ended
//! stays ended. Only a heartbeat of the present shows that nothing is missing ([`crate::access::freshness`]). Any number of nodes may follow: applying twice changes
//! nothing.

pub mod cursor;
mod kept;
pub mod meaning;
mod record;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use chancery_proto::{
    auth::v1::{
        DeviceStatus, SignedStatus, StatusHeartbeat, WatchDeviceStatusRequest,
        WatchDeviceStatusResponse, auth_service_client::AuthServiceClient, signed_status,
    },
    common::v1::Reason,
    signed,
    status::Refusal,
};
use prost::Message as _;
use service_kit::{
    db::{Db, TxError},
    lifecycle::Shutdown,
};
use tokio::{sync::Notify, time::Instant};
use tonic::{Status, Streaming};

pub use crate::store::status_feeds::Cursor;
use crate::{
    access::{
        clock::Clock,
        freshness::{self, Freshness},
        issuers::{Follower, Issuers},
    },
    error::Error,
    node::Node,
    store,
};
pub use cursor::Departure;
use meaning::Effect;
pub use meaning::{Kinds, Unreadable};
use record::record;

/// The pause before the feed is opened again, and the longest one. A revocation is to be here within a second of the service being there again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(800));
/// The longest pause between two readings of the whole feed, where its past changes again and again.
const READ_AGAIN: Duration = Duration::from_secs(15);
/// The same failure is logged again after this time.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// What is expected of the time between heartbeats.
#[derive(Debug, Clone, Copy)]
struct Times {
    heartbeat: Duration,
    /// Difference between a heartbeat's time and the clock that is forgiven.
    tolerance: Duration,
}

impl Times {
    /// The stream is opened anew after this time without a word.
    fn silence(self) -> Duration {
        self.heartbeat * 3 + Duration::from_secs(5)
    }
}

/// One feed being followed.
pub struct StatusFeed {
    follower: Arc<Follower>,
    issuers: Issuers,
    db: Db,
    clock: Clock,
    recorded: Arc<Notify>,
    freshness: Freshness,
    times: Times,
    kinds: Kinds,
    cursor: Cursor,
    /// How often its past changed since this node began.
    pasts: u32,
    /// How often since the last heartbeat that fitted.
    read_again: u32,
    /// What was kept was looked at by this program.
    kept_applied: bool,
    said: Option<(String, Instant)>,
}

impl StatusFeed {
    /// Prepares, for a program that knows these kinds of status; nothing is sent yet.
    pub fn new(follower: Arc<Follower>, node: &Node, kinds: Kinds) -> Self {
        let heartbeat = Duration::from_secs(node.config.trust.feed_heartbeat_seconds);
        let leeway = Duration::from_secs(node.config.clock_leeway_seconds.into());
        Self {
            freshness: node.issuers.freshness(follower.domain()),
            follower,
            issuers: node.issuers.clone(),
            db: node.db.clone(),
            clock: node.gate.clock.clone(),
            recorded: node.revoked.clone(),
            times: Times {
                heartbeat,
                tolerance: leeway + heartbeat * 2,
            },
            kinds,
            cursor: Cursor::default(),
            pasts: 0,
            read_again: 0,
            kept_applied: false,
            said: None,
        }
    }

    /// Follows until shutdown.
    pub async fn run(mut self, shutdown: Shutdown) {
        let stop = shutdown.soft();
        let domain = self.follower.domain().to_owned();
        let age = self.issuers.clone().watch_age(domain, self.times.tolerance);
        tokio::select! {
            () = stop.cancelled() => {}
            () = age => {}
            () = self.follow_again_and_again() => {}
        }
    }

    async fn follow_again_and_again(&mut self) {
        let mut pause = RETRY.0;
        loop {
            let before = self.cursor.clone();
            let ended = self.follow().await;
            pause = if self.cursor == before {
                (pause * 2).min(RETRY.1)
            } else {
                RETRY.0
            };
            if let Err(error) = ended {
                match other_past(&error) {
                    Some(why) => match self.forget(&why).await {
                        Ok(()) => pause = self.pause_before_reading_again(),
                        Err(error) => self.say(&error),
                    },
                    None => self.say(&error),
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn pause_before_reading_again(&mut self) -> Duration {
        self.read_again = self.read_again.saturating_add(1);
        let doubled = 1 << (self.read_again - 1).min(10);
        (RETRY.0 * doubled).min(READ_AGAIN)
    }

    /// Logs a failure, the same one not all the time.
    fn say(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let again = self
            .said
            .as_ref()
            .is_none_or(|(said, at)| *said != text || at.elapsed() >= SAY_AGAIN);
        if !again {
            return;
        }
        let domain = self.follower.domain();
        if error.is::<Unreadable>() {
            tracing::error!(domain, error = text, "the status feed cannot be applied");
        } else {
            tracing::warn!(domain, error = text, "the status feed stopped");
        }
        self.said = Some((text, Instant::now()));
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.issuers.get(self.follower.domain()).is_some(),
            "its certificates are not known yet"
        );
        if !self.kept_applied {
            self.apply_kept().await?;
            self.kept_applied = true;
        }
        self.recall().await?;
        let request = WatchDeviceStatusRequest {
            after_seq: self.cursor.seq,
            history_id: self.cursor.history_id.clone().into(),
            item_sha256: self
                .cursor
                .item_sha256
                .map_or_else(Default::default, |hash| hash.to_vec().into()),
        };
        let mut client = AuthServiceClient::new(self.follower.stream_channel());
        let opened = client.watch_device_status(request);
        let stream = tokio::time::timeout(self.times.silence(), opened).await;
        let mut stream = stream.context("no answer")??.into_inner();
        loop {
            let part = self.next_part(&mut stream).await?;
            for item in part.items {
                self.take(item).await?;
            }
            metrics::gauge!("chancery_ds_status_feed_seq", "domain" => self.follower.domain().to_owned())
                .set(self.cursor.seq as f64);
        }
    }

    async fn next_part(
        &self,
        stream: &mut Streaming<WatchDeviceStatusResponse>,
    ) -> anyhow::Result<WatchDeviceStatusResponse> {
        tokio::time::timeout(self.times.silence(), stream.message())
            .await
            .context("silence")??
            .context("it ended without a reason")
    }

    /// What was applied before, perhaps by another node.
    async fn recall(&mut self) -> anyhow::Result<()> {
        let domain = self.follower.domain_id();
        let client = self.db.client().await?;
        let Some(applied) = store::status_feeds::applied(&client, domain).await? else {
            return Ok(());
        };
        if let Some(heard) = applied.heard_micros {
            let now = self.clock.now(&self.db).await?;
            self.freshness.recalled(now.saturating_sub(heard));
        }
        let cursor = applied.cursor;
        if cursor.seq > 0 && cursor.item_sha256.is_none() {
            tracing::info!(
                domain = self.follower.domain(),
                seq = cursor.seq,
                "which status was applied last is not known; the feed is read from its beginning"
            );
            store::status_feeds::forget(&client, domain, &cursor).await?;
            self.cursor = Cursor::default();
        } else {
            self.cursor = cursor;
        }
        Ok(())
    }

    /// The feed has another past than the one that was applied: its database was restored, fell behind, or is another one. All that it says now is
    /// applied; what it no longer says stays recorded.
    async fn forget(&mut self, why: &str) -> anyhow::Result<()> {
        tracing::error!(
            domain = self.follower.domain(),
            seq = self.cursor.seq,
            why,
            "the status feed has another past than the one that was applied: the database of its Authentication Service was restored, or is not \
             the one that it was; the feed is read from its beginning, and every revocation that was known is kept"
        );
        metrics::counter!("chancery_ds_status_feed_other_past_total", "domain" => self.follower.domain().to_owned())
            .increment(1);
        self.pasts += 1;
        let name = format!("past of the status feed of {}", self.follower.domain());
        let times = self.pasts;
        let text =
            format!("another one, {times} times since this node began; the last time: {why}");
        self.issuers.readiness().warn(&name, text);
        let client = self.db.client().await?;
        store::status_feeds::forget(&client, self.follower.domain_id(), &self.cursor).await?;
        self.cursor = Cursor::default();
        Ok(())
    }

    async fn take(&mut self, item: SignedStatus) -> anyhow::Result<()> {
        match item.content.clone().context("an item without content")? {
            signed_status::Content::Heartbeat(bytes) => {
                let heartbeat = StatusHeartbeat::decode(bytes.clone())?;
                self.verify(&item, signed::HEARTBEAT, &bytes, heartbeat.time_micros)?;
                self.take_heartbeat(&heartbeat).await
            }
            signed_status::Content::Status(bytes) => {
                let status = DeviceStatus::decode(bytes.clone())?;
                self.verify(&item, signed::STATUS, &bytes, status.at_micros)?;
                let cursor = self.cursor.behind(&status, &bytes)?;
                self.apply(&status, cursor, item.encode_to_vec()).await
            }
        }
    }

    async fn take_heartbeat(&mut self, heartbeat: &StatusHeartbeat) -> anyhow::Result<()> {
        let cursor = self.cursor.at(heartbeat)?;
        let now = self.clock.now(&self.db).await?;
        let tolerance = i64::try_from(self.times.tolerance.as_micros()).unwrap_or(i64::MAX);
        let age = freshness::age(heartbeat.time_micros, now, tolerance)
            .context("a heartbeat that is not of the present")?;
        self.freshness.heard(age);
        self.read_again = 0;
        self.said = None;
        let client = self.db.client().await?;
        let domain = self.follower.domain_id();
        // Ahead of the clock it is no younger than now.
        let time_micros = heartbeat.time_micros.min(now);
        store::status_feeds::heard(&client, domain, &cursor, time_micros).await?;
        self.cursor = cursor;
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

    async fn apply(
        &mut self,
        status: &DeviceStatus,
        cursor: Cursor,
        evidence: Vec<u8>,
    ) -> anyhow::Result<()> {
        let domain = self.follower.domain_id();
        let effect = meaning::effect(status, self.follower.domain(), self.kinds)?;
        tracing::info!(seq = status.seq, change = status.change, "a status");
        if let Effect::Unknown(_) = effect {
            tracing::error!(
                domain = self.follower.domain(),
                seq = status.seq,
                change = status.change,
                "a status of a kind that this program does not know is kept, and cuts its subject off until a newer delivery-service applies it"
            );
            metrics::counter!("chancery_ds_status_feed_unknown_total", "domain" => self.follower.domain().to_owned())
                .increment(1);
        }
        let at_micros = status.at_micros;
        let next = cursor.clone();
        self.db
            .run_tx("apply_status", move |tx| {
                let (cursor, evidence) = (next.clone(), evidence.clone());
                Box::pin(async move {
                    if let Effect::Unknown(subject) = effect {
                        store::status_feeds::keep(tx, domain, &cursor, subject.id(), &evidence)
                            .await?;
                    }
                    record(tx, domain, effect, at_micros, &evidence).await?;
                    store::status_feeds::advance(tx, domain, &cursor).await?;
                    Ok::<_, TxError<Error>>(())
                })
            })
            .await
            .map_err(Error::from)?;
        self.cursor = cursor;
        match effect {
            Effect::Gone(_) => self.recorded.notify_one(),
            Effect::Unknown(_) => self.say_what_is_kept().await?,
            _ => {}
        }
        Ok(())
    }
}

/// Why the feed must be read from its beginning, where that is what a failure means.
fn other_past(error: &anyhow::Error) -> Option<String> {
    if let Some(departure) = error.downcast_ref::<Departure>() {
        return departure.is_other_past().then(|| departure.to_string());
    }
    let refusal = Refusal::from_status(error.downcast_ref::<Status>()?);
    (refusal.reason == Some(Reason::HistoryChanged)).then_some(refusal.text)
}
