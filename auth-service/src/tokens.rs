//! Access tokens for client assertions (RFC 7523, RFC 9068).

use chancery_proto::{
    auth::v1::{IssueTokenRequest, IssueTokenResponse},
    certificate::device_uri,
    common::v1::Reason,
    token::{
        self, ACCESS_TOKEN_TYPE, ASSERTION_TYPE, AccessClaims, AssertionClaims, Confirmation,
        thumbprint,
    },
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{
    caller,
    error::Error,
    node::Node,
    store::{self, devices::Device},
};

/// Longest life of a client assertion, seconds.
pub const ASSERTION_SECONDS: i64 = 60;
const ASSERTION_BYTES: usize = 4_096;
const JTI_BYTES: usize = 64;

fn invalid() -> Error {
    Error::refused(Reason::ProofInvalid, "the client assertion is not valid")
}

/// Exchanges a client assertion for an access token. An assertion works once, on whichever node.
///
/// # Errors
/// `PROOF_INVALID`, `UNKNOWN_VALUE` (audience), `DEVICE_REVOKED`, `USER_SUSPENDED`, or the database.
pub async fn issue(node: &Node, request: &IssueTokenRequest) -> Result<IssueTokenResponse, Error> {
    if !node.config.audiences().contains(&request.audience) {
        return Err(Error::refused(
            Reason::UnknownValue,
            "no tokens are issued for this audience",
        ));
    }
    let client = node.db.client().await?;
    let (now, _) = store::clock(&client).await?;
    let (device, claims) = verify(node, &client, &request.client_assertion, now).await?;
    caller::standing(&device)?;
    if device.not_after < now {
        return Err(Error::refused(
            Reason::CredentialInvalid,
            "the device's certificate expired",
        ));
    }
    drop(client);
    let keep = Duration::seconds(claims.exp + i64::from(node.config.clock_leeway_seconds) + 1);
    let (id, jti, until) = (device.id, claims.jti, OffsetDateTime::UNIX_EPOCH + keep);
    let fresh = node
        .db
        .run_tx("issue_token", move |tx| {
            let jti = jti.clone();
            Box::pin(async move { Ok(store::devices::use_assertion(tx, id, &jti, until).await?) })
        })
        .await
        .map_err(Error::from)?;
    if !fresh {
        return Err(invalid());
    }
    sign(node, &device, &request.audience, now.unix_timestamp())
}

async fn verify(
    node: &Node,
    client: &impl service_kit::db::GenericClient,
    assertion: &str,
    now: OffsetDateTime,
) -> Result<(Device, AssertionClaims), Error> {
    if assertion.len() > ASSERTION_BYTES {
        return Err(invalid());
    }
    let claimed: AssertionClaims = token::unverified(assertion).map_err(|_| invalid())?;
    let id = claimed
        .sub
        .rsplit_once("/d/")
        .and_then(|(_, id)| Uuid::try_parse(id).ok())
        .ok_or_else(invalid)?;
    let device = store::devices::find(client, id)
        .await?
        .ok_or_else(invalid)?;
    let claims: AssertionClaims =
        token::verify(assertion, ASSERTION_TYPE, &device.public_key).map_err(|_| invalid())?;
    let leeway = i64::from(node.config.clock_leeway_seconds);
    let now = now.unix_timestamp();
    let name = device_uri(&node.config.domain, id);
    let holds = claims.iss == name
        && claims.sub == name
        && claims.aud == node.config.audience()
        && (1..=JTI_BYTES).contains(&claims.jti.len())
        && claims.iat.abs_diff(now) <= u64::try_from(ASSERTION_SECONDS + leeway).unwrap_or(0)
        && claims.exp >= now.saturating_sub(leeway)
        && claims.exp <= claims.iat.saturating_add(ASSERTION_SECONDS);
    if holds {
        Ok((device, claims))
    } else {
        Err(invalid())
    }
}

fn sign(
    node: &Node,
    device: &Device,
    audience: &str,
    now: i64,
) -> Result<IssueTokenResponse, Error> {
    let expires_at = now + i64::from(node.config.token_lifetime_seconds);
    let claims = AccessClaims {
        iss: node.config.domain.clone(),
        sub: device.user.to_string(),
        device: device.id.to_string(),
        aud: audience.to_owned(),
        iat: now,
        exp: expires_at,
        jti: Uuid::new_v4().to_string(),
        cnf: Confirmation {
            jkt: thumbprint(&device.public_key),
        },
    };
    let access_token = token::sign(
        ACCESS_TOKEN_TYPE,
        Some(&node.keys.token_kid),
        &claims,
        &node.keys.token_pkcs8,
    )
    .map_err(|_| Error::Internal("signing a token".into()))?;
    Ok(IssueTokenResponse {
        access_token,
        expires_at,
    })
}
