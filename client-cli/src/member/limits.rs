//! The Delivery Service's limit for one message: remembered, so that a text above it is refused before it is kept.

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{GetServiceInfoRequest, GetServiceInfoResponse},
    status::Refusal,
};
use serde::{Deserialize, Serialize};
use tonic::Code;

use super::{Delivery, META, Member};
use crate::{
    core::CoreError,
    failure::Failure,
    store::{Step, StoreError},
};

const MESSAGE_BYTES: &[u8] = b"limit.message_bytes";
/// The service's limit where its operator sets no other.
pub(super) const USUAL_MESSAGE_BYTES: u64 = 1 << 20;
/// A limit that was asked for within this time is not asked for again.
const FRESH_SECONDS: i64 = 3_600;
/// Texts of up to this size are not worth a question: the service itself refuses one that it does not take.
const UNASKED_BYTES: u64 = 64 << 10;

/// A limit as it was published.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Published {
    /// The most bytes of one framed message.
    pub(super) bytes: u64,
    asked_at: i64,
}

/// The limit that was remembered last, if there was one.
pub(super) fn remembered(step: &Step<'_>) -> Result<Option<Published>, CoreError> {
    Ok(step.get(META, MESSAGE_BYTES)?)
}

/// Remembers what the service says of itself.
pub(super) fn remember(
    step: &Step<'_>,
    info: &GetServiceInfoResponse,
    now: i64,
) -> Result<Option<Published>, StoreError> {
    let limit = info
        .limits
        .iter()
        .find(|limit| limit.name == "message_bytes");
    let published = limit.map(|limit| Published {
        bytes: limit.value,
        asked_at: now,
    });
    if let Some(published) = &published {
        step.put(META, MESSAGE_BYTES, published)?;
    }
    Ok(published)
}

/// The answer to a message that can never be accepted, as the service would give it.
pub(super) fn refused(max: u64, got: u64) -> Failure {
    let metadata = [
        ("limit", "message_bytes".to_owned()),
        ("max", max.to_string()),
        ("got", got.to_string()),
    ];
    Failure::Refused(Box::new(Refusal {
        code: Code::ResourceExhausted,
        reason: Some(Reason::LimitExceeded),
        metadata: metadata
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        retry_after: None,
        text: CoreError::TooLarge { max, got }.to_string(),
        request_id: None,
    }))
}

impl Member {
    /// The most bytes that one framed message may have: as remembered, else as the service says now.
    ///
    /// # Errors
    /// Not remembered, and no answer; or the store.
    pub async fn message_bytes(&self) -> Result<u64, Failure> {
        match self.step(|step, _| remembered(step))? {
            Some(known) => Ok(known.bytes),
            None => self.ask_message_bytes().await,
        }
    }

    /// The same as the service says now.
    pub(super) async fn ask_message_bytes(&self) -> Result<u64, Failure> {
        let ask = self.transport.repeat(async || {
            let mut client = Delivery::new(self.transport.delivery.clone());
            Ok(client
                .get_service_info(GetServiceInfoRequest {})
                .await?
                .into_inner())
        });
        let info = ask.await?.value;
        let now = self.now();
        let published = self.step(|step, _| Ok(remember(step, &info, now)?))?;
        Ok(published.map_or(USUAL_MESSAGE_BYTES, |published| published.bytes))
    }

    /// Refuses a text that can never be accepted, before anything of it is kept.
    ///
    /// # Errors
    /// [`CoreError::TooLarge`]; no answer where the limit is not known; or the store.
    pub(super) async fn check_size(&self, bytes: usize) -> Result<(), Failure> {
        let got = u64::try_from(bytes).unwrap_or(u64::MAX);
        let known = self.step(|step, _| remembered(step))?;
        if got <= known.map_or(UNASKED_BYTES, |known| known.bytes) {
            return Ok(());
        }
        let max = match known {
            Some(known) if self.now() - known.asked_at < FRESH_SECONDS => known.bytes,
            // The operator may have raised it.
            Some(known) => self.ask_message_bytes().await.unwrap_or(known.bytes),
            None => self.ask_message_bytes().await?,
        };
        if got > max {
            return Err(CoreError::TooLarge { max, got }.into());
        }
        Ok(())
    }
}
