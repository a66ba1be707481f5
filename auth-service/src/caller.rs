//! Access token to [`Caller`]: this service asks of its own callers what it promises to others.

use chancery_proto::{common::v1::Reason, token};
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::{
    error::Error,
    node::Node,
    store::{self, devices::Device},
};

/// A device with a good token, not revoked, its user not suspended.
#[derive(Debug)]
pub struct Caller {
    /// The device as stored.
    pub device: Device,
}

/// Reads and checks the token, and what became of its device since it was issued.
///
/// # Errors
/// `TOKEN_MISSING`, `TOKEN_INVALID`, `TOKEN_EXPIRED`, `DEVICE_REVOKED`, `USER_SUSPENDED`, or the database.
pub async fn admit(node: &Node, metadata: &MetadataMap) -> Result<Caller, Error> {
    let token = token::bearer(metadata).ok_or_else(|| {
        Error::refused(
            Reason::TokenMissing,
            "authorization: Bearer <token> is missing",
        )
    })?;
    let client = node.db.client().await?;
    let (now, _) = store::clock(&client).await?;
    let claims = token::verify_access(
        token,
        &node.keys.token_key,
        &node.config.audience(),
        now.unix_timestamp(),
        node.config.clock_leeway_seconds.into(),
    )
    .map_err(|error| match error {
        token::TokenError::Expired => Error::refused(Reason::TokenExpired, "the token expired"),
        token::TokenError::Invalid => {
            Error::refused(Reason::TokenInvalid, "the token is not valid")
        }
    })?;
    let invalid = || Error::refused(Reason::TokenInvalid, "the token is not valid");
    let id: Uuid = claims.device.parse().map_err(|_| invalid())?;
    let device = store::devices::find(&client, id)
        .await?
        .ok_or_else(invalid)?;
    standing(&device)?;
    Ok(Caller { device })
}

/// Fails when the device may not act.
///
/// # Errors
/// `DEVICE_REVOKED`, `USER_SUSPENDED`.
pub fn standing(device: &Device) -> Result<(), Error> {
    if device.revoked_seq.is_some() {
        return Err(Error::refused(
            Reason::DeviceRevoked,
            "this device was revoked",
        ));
    }
    if device.suspended {
        return Err(Error::refused(
            Reason::UserSuspended,
            "this user is suspended",
        ));
    }
    Ok(())
}
