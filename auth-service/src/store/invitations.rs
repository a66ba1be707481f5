//! Invitations: the hash of a code, once.

use service_kit::db::GenericClient;
use service_kit::db::Transaction;
use time::OffsetDateTime;
use tokio_postgres::Error;
use uuid::Uuid;

/// One invitation.
#[derive(Debug)]
pub struct Invitation {
    /// Who is invited.
    pub user: Uuid,
    /// Its end.
    pub expires_at: OffsetDateTime,
    /// Hash of the request that used it, and the device that it got.
    pub used: Option<(Vec<u8>, Uuid)>,
    /// The database's time.
    pub now: OffsetDateTime,
}

/// Writes one; when it ends.
///
/// # Errors
/// The database.
pub async fn insert(
    tx: &Transaction<'_>,
    code_hash: &[u8],
    user: Uuid,
    valid_seconds: f64,
) -> Result<OffsetDateTime, Error> {
    let sql = "/* invitations::insert */ INSERT INTO invitations (code_hash, user_id, created_at, expires_at) \
               VALUES ($1, $2, clock_timestamp(), clock_timestamp() + make_interval(secs => $3)) RETURNING expires_at";
    let row = tx
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[&code_hash, &user, &valid_seconds],
        )
        .await?;
    Ok(row.get(0))
}

/// Finds one and locks it: of two that use it at once, one comes second.
///
/// # Errors
/// The database.
pub async fn lock(tx: &Transaction<'_>, code_hash: &[u8]) -> Result<Option<Invitation>, Error> {
    let sql = "/* invitations::lock */ SELECT user_id, expires_at, enroll_hash, device_id, clock_timestamp() \
               FROM invitations WHERE code_hash = $1 FOR UPDATE";
    let row = tx
        .query_opt(&tx.prepare_cached(sql).await?, &[&code_hash])
        .await?;
    Ok(row.map(|row| Invitation {
        user: row.get(0),
        expires_at: row.get(1),
        used: row
            .get::<_, Option<Vec<u8>>>(2)
            .zip(row.get::<_, Option<Uuid>>(3)),
        now: row.get(4),
    }))
}

/// Marks it as used.
///
/// # Errors
/// The database.
pub async fn mark_used(
    tx: &Transaction<'_>,
    code_hash: &[u8],
    enroll_hash: &[u8],
    device: Uuid,
) -> Result<u64, Error> {
    let sql = "/* invitations::mark_used */ UPDATE invitations SET used_at = clock_timestamp(), enroll_hash = $2, device_id = $3 \
               WHERE code_hash = $1 AND used_at IS NULL";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&code_hash, &enroll_hash, &device],
    )
    .await
}

/// As shown to the operator.
#[derive(Debug)]
pub struct Listed {
    /// Position in the list.
    pub code_hash: Vec<u8>,
    /// Who is invited.
    pub user: Uuid,
    /// Their handle.
    pub handle: String,
    /// Since when.
    pub created_at: OffsetDateTime,
    /// Until when.
    pub expires_at: OffsetDateTime,
    /// Used when.
    pub used_at: Option<OffsetDateTime>,
}

/// Invitations after a position (of its age and hash), the oldest first.
///
/// # Errors
/// The database.
pub async fn list<C: GenericClient>(
    client: &C,
    after: Option<(OffsetDateTime, Vec<u8>)>,
    limit: i64,
) -> Result<Vec<Listed>, Error> {
    let (at, hash) = after.unwrap_or((OffsetDateTime::UNIX_EPOCH, Vec::new()));
    let sql = "/* invitations::list */ SELECT i.code_hash, i.user_id, u.handle, i.created_at, i.expires_at, i.used_at \
               FROM invitations i JOIN users u ON u.user_id = i.user_id \
               WHERE (i.created_at, i.code_hash) > ($1, $2) ORDER BY i.created_at, i.code_hash LIMIT $3";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&at, &hash, &limit])
        .await?;
    Ok(rows
        .iter()
        .map(|row| Listed {
            code_hash: row.get(0),
            user: row.get(1),
            handle: row.get(2),
            created_at: row.get(3),
            expires_at: row.get(4),
            used_at: row.get(5),
        })
        .collect())
}
