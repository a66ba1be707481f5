//! Writes down what a status does.

use service_kit::db::{Transaction, TxError};

use crate::{
    error::Error,
    ordering::group::DeviceKey,
    store,
    upkeep::status_feed::meaning::{Effect, Subject},
};

/// Does what a status says, which was signed at this time (Unix microseconds). `evidence` is the encoded `auth.v1.SignedStatus`.
///
/// # Errors
/// The database.
pub(super) async fn record(
    tx: &Transaction<'_>,
    domain: i16,
    effect: Effect,
    at_micros: i64,
    evidence: &[u8],
) -> Result<(), TxError<Error>> {
    match effect {
        Effect::Gone(Subject::Device(device)) => {
            store::revocations::revoke(tx, DeviceKey { domain, device }, evidence).await?;
        }
        Effect::Gone(Subject::User(user)) => {
            for device in store::revocations::devices_of(tx, domain, user).await? {
                store::revocations::revoke(tx, device, evidence).await?;
            }
            store::revocations::suspend(tx, domain, user, false, at_micros).await?;
        }
        Effect::CutOff { subject, expired } => {
            store::revocations::suspend(tx, domain, subject.id(), expired, at_micros).await?;
        }
        Effect::Back(subject) => {
            store::revocations::reinstate(tx, domain, subject.id(), at_micros).await?;
        }
        Effect::Unknown(_) | Effect::Nothing => {}
    }
    Ok(())
}
