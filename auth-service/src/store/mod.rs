//! Every SQL statement of the service. Each opens with its function's name and lists its columns.

pub mod devices;
pub mod feed;
pub mod invitations;
pub mod users;

use service_kit::db::GenericClient;
use time::OffsetDateTime;
use tokio_postgres::Error;
use uuid::Uuid;

/// The database's time, and which life of the database this is.
///
/// # Errors
/// The database.
pub async fn clock<C: GenericClient>(client: &C) -> Result<(OffsetDateTime, Uuid), Error> {
    let sql = "/* store::clock */ SELECT clock_timestamp(), incarnation FROM service_state";
    let row = client
        .query_one(&client.prepare_cached(sql).await?, &[])
        .await?;
    Ok((row.get(0), row.get(1)))
}

pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
