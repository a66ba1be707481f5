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
    credentials::{self, Scheme, SigningRequest, Subject},
    error::Error,
    names,
    node::Node,
    store::{self, invitations::Invitation},
};

/// A request whose keys hold together; whether the invitation is good shows under its lock.
#[derive(Debug)]
struct Prepared {
    code_hash: [u8; 32],
    /// Of everything that must be the same in a repeat.
    enroll_hash: [u8; 32],
    /// The Ed25519 key first.
    requests: Vec<(Scheme, SigningRequest)>,
    /// Of each proof.
    proof_times: Vec<i64>,
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
    if request.credentials.len() > Scheme::ALL.len() {
        return Err(Error::malformed("credentials", "one for each scheme"));
    }
    let mut requests: Vec<(Scheme, SigningRequest)> = Vec::new();
    for credential in &request.credentials {
        let (scheme, signing) = proved(node, code, credential)?;
        if requests.iter().any(|(known, _)| *known == scheme) {
            return Err(Error::malformed("credentials", "one for each scheme"));
        }
        requests.push((scheme, signing));
    }
    if requests.first().map(|(scheme, _)| *scheme) != Some(Scheme::Ed25519) {
        return Err(Error::malformed(
            "credentials",
            "an Ed25519 key comes first",
        ));
    }
    let times = request.credentials.iter();
    Ok(Prepared {
        code_hash: code_hash(code),
        enroll_hash: enroll_hash(&request.credentials),
        requests,
        proof_times: times.map(|credential| credential.proof_time).collect(),
        device_name: names::shown("device_name", &request.device_name)?,
    })
}

/// A signing request whose key proved that it knows the invitation.
fn proved(
    node: &Node,
    code: &str,
    credential: &Credential,
) -> Result<(Scheme, SigningRequest), Error> {
    let limits = &node.config.limits;
    Error::within("csr_bytes", limits.csr_bytes, credential.csr.len())?;
    let scheme = Scheme::from_code(credential.scheme)
        .ok_or_else(|| Error::refused(Reason::UnknownValue, "the signature scheme is not known"))?;
    let signing = SigningRequest::parse(&credential.csr, scheme)?;
    let content = signed::enroll(
        &node.config.domain,
        code,
        &credential.csr,
        credential.proof_time,
    );
    let key = signing.public_key();
    if !signed::verify(key, signed::ENROLL, &content, &credential.proof) {
        return Err(proof_invalid());
    }
    Ok((scheme, signing))
}

fn enroll_hash(credentials: &[Credential]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for credential in credentials {
        hash.update(Sha256::digest(&credential.csr));
        hash.update(Sha256::digest(&credential.proof));
    }
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
    let leeway = u64::from(node.config.clock_leeway_seconds);
    let now = invitation.now.unix_timestamp();
    let mut times = prepared.proof_times.iter();
    if invitation.expires_at < invitation.now || times.any(|time| now.abs_diff(*time) > leeway) {
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
        [vec![device.certificate], device.other_certificates].concat(),
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
    store::devices::insert(tx, device, user, &prepared.device_name, invitation.now).await?;
    let mut certificates = Vec::new();
    for (scheme, request) in &prepared.requests {
        let (certificate, not_after) =
            credentials::issue(&node.keys, request, subject, invitation.now, lifetime)?;
        let (key, code) = (request.public_key(), scheme.code().into());
        if !store::devices::insert_key(tx, device, key, code, &certificate, not_after).await? {
            return Err(Error::refused(
                Reason::KeyInUse,
                "this key belongs to a device already",
            ));
        }
        certificates.push(certificate);
    }
    store::invitations::mark_used(tx, &prepared.code_hash, &prepared.enroll_hash, device).await?;
    let actor = format!("user:{user}");
    store::feed::audit(tx, &actor, "enroll", &format!("device:{device}")).await?;
    Ok(answer(node, user, device, certificates, false))
}

fn answer(
    node: &Node,
    user: Uuid,
    device: Uuid,
    certificates: Vec<Vec<u8>>,
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
        certificates: certificates.into_iter().map(Into::into).collect(),
        replayed,
    }
}
