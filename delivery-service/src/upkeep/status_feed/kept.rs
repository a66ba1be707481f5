//! Statuses of kinds that no program here knew when they came: kept until one does.

use chancery_proto::auth::v1::{DeviceStatus, SignedStatus, signed_status};
use prost::Message as _;
use service_kit::db::TxError;

use crate::{
    error::Error,
    store,
    upkeep::status_feed::{
        StatusFeed,
        meaning::{self, Effect},
        record::record,
    },
};

impl StatusFeed {
    /// Says on `/readyz` how many statuses wait for a program that knows them.
    pub(super) async fn say_what_is_kept(&self) -> anyhow::Result<()> {
        let client = self.db.client().await?;
        let kept = store::status_feeds::kept(&client, self.follower.domain_id()).await?;
        let name = format!("unknown statuses of {}", self.follower.domain());
        match kept.len() {
            0 => self.issuers.readiness().clear(&name),
            kept => {
                let text = format!(
                    "{kept} cut their subjects off until a newer delivery-service applies them"
                );
                self.issuers.readiness().warn(&name, text);
            }
        }
        Ok(())
    }

    /// Applies what was kept by a program that did not know it. What came after it was applied before it, so the feed is then read from its beginning.
    pub(super) async fn apply_kept(&mut self) -> anyhow::Result<()> {
        let domain = self.follower.domain_id();
        let client = self.db.client().await?;
        let kept = store::status_feeds::kept(&client, domain).await?;
        let mut applied = 0;
        for kept in kept {
            match self.apply_one_kept(&kept).await {
                Ok(true) => applied += 1,
                Ok(false) => {}
                // It stays kept, and its subject cut off.
                Err(error) => self.say(&error.context("a status that was kept")),
            }
        }
        if applied > 0 {
            tracing::info!(
                domain = self.follower.domain(),
                applied,
                "statuses that were kept are applied; the feed is read from its beginning"
            );
            self.recorded.notify_one();
            if let Some(applied) = store::status_feeds::applied(&client, domain).await? {
                store::status_feeds::forget(&client, domain, &applied.cursor).await?;
            }
        }
        drop(client);
        self.say_what_is_kept().await
    }

    /// False where it is still of an unknown kind.
    async fn apply_one_kept(&self, kept: &store::status_feeds::Kept) -> anyhow::Result<bool> {
        let item = SignedStatus::decode(kept.item.as_slice())?;
        let Some(signed_status::Content::Status(bytes)) = item.content else {
            anyhow::bail!("no status");
        };
        let status = DeviceStatus::decode(bytes)?;
        let effect = meaning::effect(&status, self.follower.domain(), self.kinds)?;
        let subject = match effect {
            Effect::Gone(subject) | Effect::CutOff { subject, .. } | Effect::Back(subject) => {
                subject.id()
            }
            Effect::Unknown(_) | Effect::Nothing => return Ok(false),
        };
        let (domain, at_micros) = (self.follower.domain_id(), status.at_micros);
        let kept = kept.clone();
        self.db
            .run_tx("apply_kept_status", move |tx| {
                let kept = kept.clone();
                Box::pin(async move {
                    record(tx, domain, effect, at_micros, &kept.item).await?;
                    store::status_feeds::release(tx, domain, &kept.item_sha256, subject).await?;
                    store::status_feeds::touch(tx, domain).await?;
                    Ok::<_, TxError<Error>>(())
                })
            })
            .await
            .map_err(Error::from)?;
        Ok(true)
    }
}
