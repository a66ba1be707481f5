//! Enrolment: an invitation and a key become a device with a certificate.

use chancery_proto::{
    auth::v1::{Credential, EnrollRequest, EnrollResponse, enroll_request},
    common::v1::{DeviceRef, Reason, UserRef},
    signed,
};
use service_kit::db::Transaction;
use sha2::{Digest as _, Sha256};
use time::Duration;
use uuid::Uuid;

use crate::{
    credentials::{self, ED25519_SCHEME, SigningRequest, Subject},
    error::Error,
    node::Node,
    store::{self, invitations::Invitation},
};

/// A request whose keys hold together; whether the invitation is good shows under its lock.
#[derive(Debug)]
struct Prepared {
    code_hash: [u8; 32],
    /// Of everything that must be the same in a repeat.
    enroll_hash: [u8; 32],
    request: SigningRequest,
    scheme: i32,
    proof_time: i64,
    device_name: String,
}

/// Hash under which an invitation's code is stored.
pub fn code_hash(code: &str) -> [u8; 32] {
    Sha256::digest(code.trim().as_bytes()).into()
}

/// Enrols a device.
///
/// # Errors
/// `MALFORMED`, `LIMIT_EXCEEDED`, `UNKNOWN_VALUE`, `PROOF_INVALID` (also for an unknown or expired invitation), `INVITATION_USED`, `KEY_IN_USE`,
/// `USER_SUSPENDED`, or the database.
pub async fn enroll(node: &Node, request: &EnrollRequest) -> Result<EnrollResponse, Error> {
    let prepared = std::sync::Arc::new(prepare(node, request)?);
    let shared = node.clone();
    let answer = node
        .db
        .run_tx("enroll", move |tx| {
            let (node, prepared) = (shared.clone(), prepared.clone());
            Box::pin(async move { Ok(in_tx(tx, &node, &prepared).await?) })
        })
        .await?;
    Ok(answer)
}

fn prepare(node: &Node, request: &EnrollRequest) -> Result<Prepared, Error> {
    let limits = &node.config.limits;
    let code = match &request.by {
        Some(enroll_request::By::Invitation(code)) => code.trim(),
        Some(enroll_request::By::OidcIdToken(_)) => {
            return Err(Error::refused(
                Reason::UnknownValue,
                "OpenID Connect is not configured",
            ));
        }
        None => return Err(Error::malformed("by", "missing")),
    };
    Error::within("name_bytes", limits.name_bytes, code.len())?;
    Error::within("name_bytes", limits.name_bytes, request.device_name.len())?;
    let [credential] = request.credentials.as_slice() else {
        return Err(Error::malformed("credentials", "exactly one is expected"));
    };
    Error::within("csr_bytes", limits.csr_bytes, credential.csr.len())?;
    if credential.scheme != ED25519_SCHEME {
        return Err(Error::refused(
            Reason::UnknownValue,
            "the signature scheme is not known",
        ));
    }
    let signing = SigningRequest::parse(&credential.csr)?;
    let content = signed::enroll(
        &node.config.domain,
        code,
        &credential.csr,
        credential.proof_time,
    );
    if !signed::verify(
        signing.public_key(),
        signed::ENROLL,
        &content,
        &credential.proof,
    ) {
        return Err(proof_invalid());
    }
    Ok(Prepared {
        code_hash: code_hash(code),
        enroll_hash: enroll_hash(credential),
        request: signing,
        scheme: i32::try_from(credential.scheme).unwrap_or_default(),
        proof_time: credential.proof_time,
        device_name: request.device_name.trim().to_owned(),
    })
}

fn enroll_hash(credential: &Credential) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(Sha256::digest(&credential.csr));
    hash.update(Sha256::digest(&credential.proof));
    hash.finalize().into()
}

fn proof_invalid() -> Error {
    Error::refused(
        Reason::ProofInvalid,
        "the invitation or the proof is not valid",
    )
}

async fn in_tx(
    tx: &Transaction<'_>,
    node: &Node,
    prepared: &Prepared,
) -> Result<EnrollResponse, Error> {
    let invitation = store::invitations::lock(tx, &prepared.code_hash)
        .await?
        .ok_or_else(proof_invalid)?;
    if let Some((hash, device)) = &invitation.used {
        return repeat(tx, node, prepared, hash, *device).await;
    }
    let leeway = i64::from(node.config.clock_leeway_seconds);
    let age = invitation.now.unix_timestamp() - prepared.proof_time;
    if invitation.expires_at < invitation.now || age.abs() > leeway {
        return Err(proof_invalid());
    }
    new_device(tx, node, prepared, &invitation).await
}

/// The same proof gets the same device, however late; another one learns that it came second.
async fn repeat(
    tx: &Transaction<'_>,
    node: &Node,
    prepared: &Prepared,
    hash: &[u8],
    device: Uuid,
) -> Result<EnrollResponse, Error> {
    if hash != prepared.enroll_hash {
        return Err(Error::refused(
            Reason::InvitationUsed,
            "the invitation was used",
        ));
    }
    let device = store::devices::find(tx, device)
        .await?
        .ok_or_else(|| Error::Internal("an invitation names no device".into()))?;
    Ok(answer(
        node,
        device.user,
        device.id,
        device.certificate,
        true,
    ))
}

async fn new_device(
    tx: &Transaction<'_>,
    node: &Node,
    prepared: &Prepared,
    invitation: &Invitation,
) -> Result<EnrollResponse, Error> {
    let user = invitation.user;
    let devices = store::devices::count_of_user(tx, user).await?;
    Error::within(
        "user_devices_items",
        node.config.limits.user_devices_items,
        usize::try_from(devices).unwrap_or(usize::MAX) + 1,
    )?;
    if store::users::by_ids(tx, &[user])
        .await?
        .iter()
        .any(|user| user.suspended)
    {
        return Err(Error::refused(
            Reason::UserSuspended,
            "this user is suspended",
        ));
    }
    let device = Uuid::new_v4();
    let subject = Subject {
        domain: &node.config.domain,
        user,
        device,
    };
    let lifetime = Duration::days(node.config.certificate_lifetime_days.into());
    let (certificate, not_after) = credentials::issue(
        &node.keys,
        &prepared.request,
        subject,
        invitation.now,
        lifetime,
    )?;
    store::devices::insert(tx, device, user, &prepared.device_name, invitation.now).await?;
    let key = prepared.request.public_key();
    if !store::devices::insert_key(tx, device, key, prepared.scheme, &certificate, not_after)
        .await?
    {
        return Err(Error::refused(
            Reason::KeyInUse,
            "this key belongs to a device already",
        ));
    }
    store::invitations::mark_used(tx, &prepared.code_hash, &prepared.enroll_hash, device).await?;
    let actor = format!("user:{user}");
    store::feed::audit(tx, &actor, "enroll", &format!("device:{device}")).await?;
    Ok(answer(node, user, device, certificate, false))
}

fn answer(
    node: &Node,
    user: Uuid,
    device: Uuid,
    certificate: Vec<u8>,
    replayed: bool,
) -> EnrollResponse {
    let domain = &node.config.domain;
    EnrollResponse {
        user: Some(UserRef {
            domain: domain.clone(),
            id: user.as_bytes().to_vec().into(),
        }),
        device: Some(DeviceRef {
            domain: domain.clone(),
            id: device.as_bytes().to_vec().into(),
        }),
        certificates: vec![certificate.into()],
        replayed,
    }
}
