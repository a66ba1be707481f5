//! The status feed: every path that ends access ends in [`append`], in the transaction that ends it.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use chancery_proto::{
    auth::v1::{
        DeviceStatus, SignedStatus, StatusChange, StatusHeartbeat, device_status, signed_status,
    },
    certificate::STATUS_EKU,
    signed,
};
use prost::Message as _;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ED25519,
};
use ring::signature::Ed25519KeyPair;
use service_kit::db::Transaction;
use time::{Duration, OffsetDateTime};

use crate::{error::Error, keys::Keys, store};

const SIGNER_DAYS: i64 = 30;

/// Signs items. Its key lives in this process only and is renewed half way through its certificate: each item carries its own chain.
#[derive(Debug, Default)]
pub struct Signer {
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    pair: Ed25519KeyPair,
    chain: Vec<Bytes>,
    renew_at: OffsetDateTime,
}

impl Signer {
    /// A signature over label and content, and the chain up to, not including, the root.
    ///
    /// # Errors
    /// [`Error::Internal`] when no key can be made.
    pub fn sign(
        &self,
        keys: &Keys,
        label: &str,
        content: &[u8],
        now: OffsetDateTime,
    ) -> Result<(Vec<u8>, Vec<Bytes>), Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|c| c.renew_at <= now) {
            *current = Some(Current::make(keys, now)?);
        }
        let current = current
            .as_ref()
            .ok_or_else(|| Error::Internal("no status key".into()))?;
        let signature = current.pair.sign(&signed::to_be_signed(label, content));
        Ok((signature.as_ref().to_vec(), current.chain.clone()))
    }
}

impl Current {
    fn make(keys: &Keys, now: OffsetDateTime) -> Result<Self, Error> {
        let internal = |error: rcgen::Error| Error::Internal(format!("status key: {error}"));
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(internal)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(STATUS_EKU.to_vec())];
        params
            .distinguished_name
            .push(DnType::CommonName, "Chancery device status");
        params.not_before = now - Duration::minutes(5);
        params.not_after = now + Duration::days(SIGNER_DAYS);
        let certificate = params.signed_by(&key, &keys.issuer).map_err(internal)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.serialize_der())
            .map_err(|_| Error::Internal("status key".into()))?;
        Ok(Self {
            pair,
            chain: vec![
                certificate.der().to_vec().into(),
                keys.intermediate_der.clone().into(),
            ],
            renew_at: now + Duration::days(SIGNER_DAYS / 2),
        })
    }
}

/// Writes one change into the feed; its seq. The counter's row is locked until COMMIT, so that no reader passes a number that is not there yet.
/// Each item names the hash of the one before, and none is older than that, also where the clock was set back.
///
/// # Errors
/// The database, or no key to sign with.
pub async fn append(
    tx: &Transaction<'_>,
    keys: &Keys,
    signer: &Signer,
    subject: device_status::Subject,
    change: StatusChange,
) -> Result<u64, Error> {
    let position = store::feed::next(tx).await?;
    let before = store::feed::at(tx, position.seq - 1).await?;
    let before_micros = before
        .as_deref()
        .and_then(|status| DeviceStatus::decode(status).ok())
        .map_or(0, |status| status.at_micros);
    let previous = before.as_deref().map(signed::status_sha256);
    let status = DeviceStatus {
        seq: position.seq,
        subject: Some(subject),
        change: change.into(),
        at_micros: micros(position.now).max(before_micros),
        history_id: position.history_id.as_bytes().to_vec().into(),
        previous_sha256: previous.map_or_else(Bytes::new, |hash| hash.to_vec().into()),
        ..DeviceStatus::default()
    }
    .encode_to_vec();
    let (signature, chain) = signer.sign(keys, signed::STATUS, &status, position.now)?;
    store::feed::insert(tx, position.seq, &status, &signature, &chain).await?;
    Ok(position.seq)
}

/// A signed heartbeat: "this was the last item at this time". `last` is the item's hash, where there is one.
///
/// # Errors
/// No key to sign with.
pub fn heartbeat(
    keys: &Keys,
    signer: &Signer,
    head: &store::feed::Head,
    last: Option<[u8; 32]>,
) -> Result<SignedStatus, Error> {
    let heartbeat = StatusHeartbeat {
        seq: head.seq,
        time_micros: micros(head.now),
        history_id: head.history_id.as_bytes().to_vec().into(),
        item_sha256: last.map_or_else(Bytes::new, |hash| hash.to_vec().into()),
    }
    .encode_to_vec();
    let (signature, chain) = signer.sign(keys, signed::HEARTBEAT, &heartbeat, head.now)?;
    Ok(SignedStatus {
        content: Some(signed_status::Content::Heartbeat(heartbeat.into())),
        signature: signature.into(),
        chain,
    })
}

/// Unix microseconds.
pub fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)
}
