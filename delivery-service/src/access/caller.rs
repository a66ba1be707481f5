//! Who calls, and whether it may.

use chancery_proto::common::v1::Reason;
use service_kit::db::{Db, DbError};
use uuid::Uuid;

use crate::{
    error::Error,
    ordering::group::DeviceKey,
    store::{self, devices::Standing},
};

/// Its user is suspended, or its certificate expired: cut off until the Authentication Service says otherwise.
pub fn suspended() -> Error {
    Error::refused(
        Reason::UserSuspended,
        "this user is suspended, or the device's certificate expired",
    )
}

/// Checks that the device is neither revoked nor suspended and belongs to the token's user.
///
/// # Errors
/// `DEVICE_REVOKED`, `USER_SUSPENDED`, or `TOKEN_INVALID` where the device belongs to somebody else than the token says.
pub fn check_standing(standing: &Standing, user: Uuid) -> Result<(), Error> {
    if standing.revoked {
        return Err(Error::refused(
            Reason::DeviceRevoked,
            "this device was revoked",
        ));
    }
    if standing.suspended {
        return Err(suspended());
    }
    if standing.user.is_some_and(|known| known != user) {
        return Err(Error::refused(
            Reason::TokenInvalid,
            "the device belongs to another user",
        ));
    }
    Ok(())
}

/// Looks whether a caller may call at all.
///
/// # Errors
/// As [`check_standing`], or the database.
pub async fn look_at_standing(caller: &Caller, db: &Db) -> Result<(), Error> {
    let client = db.client().await?;
    let standing = store::devices::standing(&client, caller.key, caller.user)
        .await
        .map_err(DbError::from)?;
    check_standing(&standing, caller.user)
}

/// Who calls: a device and its user, vouched for by a token.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The device.
    pub key: DeviceKey,
    /// Its user.
    pub user: Uuid,
    /// Name of the vouching domain.
    pub domain: String,
    /// Unix seconds at which the token ends.
    pub expires_at: i64,
    /// RFC 7638 thumbprint of the device key.
    pub key_thumbprint: String,
}
