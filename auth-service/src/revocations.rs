//! Revoking devices, and what became of a certificate.

use chancery_proto::{
    auth::v1::{
        CheckCertificateRequest, CheckCertificateResponse, RevokeDeviceRequest, StatusChange,
        check_certificate_response::Verdict, device_status,
    },
    certificate,
    common::v1::{DeviceRef, Reason},
    signed,
};
use service_kit::db::Transaction;
use uuid::Uuid;

use crate::{caller::Caller, error::Error, feed, node::Node, store};

/// How far ahead a signed revocation may end, seconds.
const REQUEST_SECONDS: i64 = 600;

/// The device that a reference of this domain names.
///
/// # Errors
/// `MALFORMED`, `DEVICE` for another domain.
pub fn device_id(node: &Node, device: Option<&DeviceRef>) -> Result<Uuid, Error> {
    let device = device.ok_or_else(|| Error::malformed("device", "missing"))?;
    if device.domain != node.config.domain {
        return Err(no_device());
    }
    Uuid::from_slice(&device.id).map_err(|error| Error::malformed("device.id", error))
}

fn no_device() -> Error {
    Error::refused(Reason::Device, "no such device")
}

/// Revokes a device of the caller's user; the revocation's position in the feed. Signed by the caller's device key: a stolen token is not enough.
///
/// # Errors
/// `PROOF_INVALID`, `DEVICE`, `MALFORMED`, or the database.
pub async fn by_user(
    node: &Node,
    caller: &Caller,
    request: &RevokeDeviceRequest,
) -> Result<u64, Error> {
    let device = device_id(node, request.device.as_ref())?;
    let content = signed::revoke((&node.config.domain, device.as_bytes()), request.expires_at);
    let client = node.db.client().await?;
    let (now, _) = store::clock(&client).await?;
    let left = request.expires_at.saturating_sub(now.unix_timestamp());
    let leeway = i64::from(node.config.clock_leeway_seconds);
    let key = &caller.device.public_key;
    if !(-leeway..=REQUEST_SECONDS + leeway).contains(&left)
        || !signed::verify(key, signed::REVOKE, &content, &request.signature)
    {
        return Err(Error::refused(
            Reason::ProofInvalid,
            "the signature is not valid",
        ));
    }
    let owned = store::devices::find(&client, device)
        .await?
        .is_some_and(|device| device.user == caller.device.user);
    drop(client);
    if !owned {
        return Err(no_device());
    }
    revoke(node, device, format!("user:{}", caller.device.user)).await
}

/// Revokes a device, once: a repeat gets the first position.
///
/// # Errors
/// `DEVICE`, or the database.
pub async fn revoke(node: &Node, device: Uuid, actor: String) -> Result<u64, Error> {
    let shared = node.clone();
    let seq = node
        .db
        .run_tx("revoke", move |tx| {
            let (node, actor) = (shared.clone(), actor.clone());
            Box::pin(async move { Ok(in_tx(tx, &node, device, &actor).await?) })
        })
        .await?;
    node.moved.send_replace(());
    Ok(seq)
}

async fn in_tx(tx: &Transaction<'_>, node: &Node, device: Uuid, actor: &str) -> Result<u64, Error> {
    store::devices::lock(tx, device).await?;
    let known = store::devices::find(tx, device)
        .await?
        .ok_or_else(no_device)?;
    if let Some(seq) = known.revoked_seq {
        return Ok(seq);
    }
    let subject = device_status::Subject::Device(DeviceRef {
        domain: node.config.domain.clone(),
        id: device.as_bytes().to_vec().into(),
    });
    let change = StatusChange::Revoked;
    let seq = feed::append(tx, &node.keys, &node.signer, subject, change).await?;
    store::devices::mark_revoked(tx, device, seq).await?;
    store::feed::audit(tx, actor, "revoke", &format!("device:{device}")).await?;
    Ok(seq)
}

/// Whether a certificate is good at a time.
///
/// # Errors
/// `LIMIT_EXCEEDED`, or the database.
pub async fn check(
    node: &Node,
    request: &CheckCertificateRequest,
) -> Result<CheckCertificateResponse, Error> {
    let limit = node.config.limits.csr_bytes;
    Error::within("csr_bytes", limit, request.certificate.len())?;
    Error::within("csr_bytes", limit, request.successor.len())?;
    let client = node.db.client().await?;
    let (now, _) = store::clock(&client).await?;
    let at = match request.at {
        0 => now.unix_timestamp(),
        at => at,
    };
    let known = store::devices::by_certificate(&client, &request.certificate).await?;
    let verdict = match &known {
        None => Verdict::Unknown,
        Some(device) if device.revoked_seq.is_some() => Verdict::Revoked,
        Some(device) if device.suspended => Verdict::Suspended,
        Some(_) => match node.keys.anchors.verify_device(&request.certificate, at) {
            Ok(_) => Verdict::Valid,
            Err(_) => Verdict::Expired,
        },
    };
    let other = match request.successor.as_ref() {
        [] => None,
        der => store::devices::by_certificate(&client, der).await?,
    };
    let (valid_successor, same_user) = match (&known, &other) {
        (Some(old), Some(new)) => {
            let current = new.certificate == request.successor
                && certificate::read_device(&request.successor).is_ok();
            (old.id == new.id && current, old.user == new.user)
        }
        _ => (false, false),
    };
    Ok(CheckCertificateResponse {
        verdict: verdict.into(),
        valid_successor,
        same_user,
    })
}
