//! Devices, their keys and certificates, and the assertions that they used.

use service_kit::db::GenericClient;
use service_kit::db::Transaction;
use time::OffsetDateTime;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::unsigned;

/// One device with its current certificate.
#[derive(Debug, Clone)]
pub struct Device {
    /// The device.
    pub id: Uuid,
    /// Its user.
    pub user: Uuid,
    /// Its name, for the user and their other devices.
    pub name: String,
    /// Since when.
    pub enrolled_at: OffsetDateTime,
    /// Position of its revocation in the status feed.
    pub revoked_seq: Option<u64>,
    /// Its raw Ed25519 key.
    pub public_key: Vec<u8>,
    /// DER, of the Ed25519 key.
    pub certificate: Vec<u8>,
    /// Of its other keys.
    pub other_certificates: Vec<Vec<u8>>,
    /// End of the certificate.
    pub not_after: OffsetDateTime,
    /// Whether its user is suspended.
    pub suspended: bool,
}

// 2055 is 0x0807: the key that a device is known by.
const SELECT: &str = "SELECT d.device_id, d.user_id, d.name, d.enrolled_at, d.revoked_seq, k.public_key, k.certificate, k.not_after, u.suspended, \
                      ARRAY(SELECT o.certificate FROM device_keys o WHERE o.device_id = d.device_id AND o.current AND o.scheme <> 2055 ORDER BY o.scheme) \
                      FROM devices d JOIN users u ON u.user_id = d.user_id \
                      JOIN device_keys k ON k.device_id = d.device_id AND k.current AND k.scheme = 2055";

fn device(row: &Row) -> Device {
    Device {
        id: row.get(0),
        user: row.get(1),
        name: row.get(2),
        enrolled_at: row.get(3),
        revoked_seq: row.get::<_, Option<i64>>(4).map(unsigned),
        public_key: row.get(5),
        certificate: row.get(6),
        not_after: row.get(7),
        suspended: row.get(8),
        other_certificates: row.get(9),
    }
}

/// A device by id.
///
/// # Errors
/// The database.
pub async fn find<C: GenericClient>(client: &C, id: Uuid) -> Result<Option<Device>, Error> {
    let sql = format!("/* devices::find */ {SELECT} WHERE d.device_id = $1");
    let row = client
        .query_opt(&client.prepare_cached(&sql).await?, &[&id])
        .await?;
    Ok(row.as_ref().map(device))
}

/// The device whose certificate this is, now or once.
///
/// # Errors
/// The database.
pub async fn by_certificate<C: GenericClient>(
    client: &C,
    certificate: &[u8],
) -> Result<Option<Device>, Error> {
    let sql = format!(
        "/* devices::by_certificate */ {SELECT} WHERE d.device_id IN (SELECT c.device_id FROM device_keys c WHERE c.certificate = $1)"
    );
    let row = client
        .query_opt(&client.prepare_cached(&sql).await?, &[&certificate])
        .await?;
    Ok(row.as_ref().map(device))
}

/// Devices of users, in order of their enrolment.
///
/// # Errors
/// The database.
pub async fn of_users<C: GenericClient>(client: &C, users: &[Uuid]) -> Result<Vec<Device>, Error> {
    let sql = format!(
        "/* devices::of_users */ {SELECT} WHERE d.user_id = ANY($1) ORDER BY d.user_id, d.enrolled_at, d.device_id"
    );
    let rows = client
        .query(&client.prepare_cached(&sql).await?, &[&users])
        .await?;
    Ok(rows.iter().map(device).collect())
}

/// Locks a device against another change of its state.
///
/// # Errors
/// The database.
pub async fn lock(tx: &Transaction<'_>, id: Uuid) -> Result<u64, Error> {
    let sql = "/* devices::lock */ SELECT 1 FROM devices WHERE device_id = $1 FOR UPDATE";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id]).await
}

/// How many devices of this user are not revoked. The user's row is locked: two enrolments at once cannot both take the last place.
///
/// # Errors
/// The database.
pub async fn count_of_user(tx: &Transaction<'_>, user: Uuid) -> Result<i64, Error> {
    let sql = "/* devices::count_of_user */ SELECT 1 FROM users WHERE user_id = $1 FOR UPDATE";
    tx.execute(&tx.prepare_cached(sql).await?, &[&user]).await?;
    let sql = "/* devices::count_of_user */ SELECT count(*) FROM devices WHERE user_id = $1 AND revoked_seq IS NULL";
    Ok(tx
        .query_one(&tx.prepare_cached(sql).await?, &[&user])
        .await?
        .get(0))
}

/// Writes a new device.
///
/// # Errors
/// The database.
pub async fn insert(
    tx: &Transaction<'_>,
    id: Uuid,
    user: Uuid,
    name: &str,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let sql = "/* devices::insert */ INSERT INTO devices (device_id, user_id, name, enrolled_at) VALUES ($1, $2, $3, $4)";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id, &user, &name, &at])
        .await?;
    Ok(())
}

/// Binds a key to a device for ever; `false` when it is some device's already.
///
/// # Errors
/// The database.
pub async fn insert_key(
    tx: &Transaction<'_>,
    id: Uuid,
    public_key: &[u8],
    scheme: i32,
    certificate: &[u8],
    not_after: OffsetDateTime,
) -> Result<bool, Error> {
    let sql = "/* devices::insert_key */ INSERT INTO device_keys (public_key, device_id, scheme, certificate, not_after, current) \
               VALUES ($1, $2, $3, $4, $5, true) ON CONFLICT (public_key) DO NOTHING";
    let rows = tx
        .execute(
            &tx.prepare_cached(sql).await?,
            &[&public_key, &id, &scheme, &certificate, &not_after],
        )
        .await?;
    Ok(rows == 1)
}

/// Marks a device as revoked, at a position of the status feed.
///
/// # Errors
/// The database.
pub async fn mark_revoked(tx: &Transaction<'_>, id: Uuid, seq: u64) -> Result<u64, Error> {
    let sql = "/* devices::mark_revoked */ UPDATE devices SET revoked_seq = $2 WHERE device_id = $1 AND revoked_seq IS NULL";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id, &super::signed(seq)])
        .await
}

/// Devices whose certificate ended and whose end was not said yet, locked; those that another node is at are passed over.
///
/// # Errors
/// The database.
pub async fn lock_expired(tx: &Transaction<'_>, at_most: i64) -> Result<Vec<Uuid>, Error> {
    let sql = "/* devices::lock_expired */ SELECT d.device_id FROM devices d JOIN device_keys k ON k.device_id = d.device_id \
               AND k.current AND k.scheme = 2055 WHERE k.not_after < clock_timestamp() AND d.expired_seq IS NULL AND d.revoked_seq IS NULL \
               ORDER BY k.not_after, d.device_id LIMIT $1 FOR UPDATE OF d SKIP LOCKED";
    let rows = tx
        .query(&tx.prepare_cached(sql).await?, &[&at_most])
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Notes that the end of a device's certificate was said, at a position of the status feed.
///
/// # Errors
/// The database.
pub async fn mark_expired(tx: &Transaction<'_>, id: Uuid, seq: u64) -> Result<u64, Error> {
    let sql =
        "/* devices::mark_expired */ UPDATE devices SET expired_seq = $2 WHERE device_id = $1";
    tx.execute(&tx.prepare_cached(sql).await?, &[&id, &super::signed(seq)])
        .await
}

/// Uses an assertion; `false` when it was used before. Drops what is too old to be replayed.
///
/// # Errors
/// The database.
pub async fn use_assertion(
    tx: &Transaction<'_>,
    device: Uuid,
    jti: &str,
    expires_at: OffsetDateTime,
) -> Result<bool, Error> {
    let sql = "/* devices::use_assertion */ DELETE FROM used_assertions WHERE (device_id, jti) IN \
               (SELECT device_id, jti FROM used_assertions WHERE expires_at < clock_timestamp() LIMIT 100 FOR UPDATE SKIP LOCKED)";
    tx.execute(&tx.prepare_cached(sql).await?, &[]).await?;
    let sql = "/* devices::use_assertion */ INSERT INTO used_assertions (device_id, jti, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    Ok(tx
        .execute(
            &tx.prepare_cached(sql).await?,
            &[&device, &jti, &expires_at],
        )
        .await?
        == 1)
}
