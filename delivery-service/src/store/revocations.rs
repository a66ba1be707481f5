//! Access that ends: revoked devices and the groups that still hold them, suspended users, and who is asked to remove whom.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::Error;
use uuid::Uuid;

use crate::{
    ordering::group::DeviceKey,
    store::{columns, device_key},
};

/// Records a revocation with the Authentication Service's signed statement, and takes the device's KeyPackages away. From COMMIT on it is refused
/// everywhere; its groups are marked later.
pub async fn revoke(tx: &Transaction<'_>, key: DeviceKey, evidence: &[u8]) -> Result<(), Error> {
    let sql = "/* revocations::revoke */ SELECT 1 FROM devices WHERE domain_id = $1 AND device_id = $2 FOR UPDATE";
    tx.execute(&tx.prepare_cached(sql).await?, &[&key.domain, &key.device])
        .await?;
    // A device that never called here has no user here yet.
    let sql = "/* revocations::revoke */ INSERT INTO devices (domain_id, device_id, user_id, revoked) VALUES ($1, $2, $3, true) \
               ON CONFLICT (device_id, domain_id) DO UPDATE SET revoked = true";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&key.domain, &key.device, &Uuid::nil()],
    )
    .await?;
    let sql = "/* revocations::revoke */ INSERT INTO revoked_devices (domain_id, device_id, evidence) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&key.domain, &key.device, &evidence],
    )
    .await?;
    let sql = "/* revocations::revoke */ DELETE FROM key_packages WHERE domain_id = $1 AND device_id = $2 AND claim_id IS NULL";
    tx.execute(&tx.prepare_cached(sql).await?, &[&key.domain, &key.device])
        .await?;
    Ok(())
}

/// The devices of a user that this service knows.
pub async fn devices_of(
    tx: &Transaction<'_>,
    domain: i16,
    user: Uuid,
) -> Result<Vec<DeviceKey>, Error> {
    let sql = "/* revocations::devices_of */ SELECT device_id FROM devices WHERE domain_id = $1 AND user_id = $2 ORDER BY device_id";
    let rows = tx
        .query(&tx.prepare_cached(sql).await?, &[&domain, &user])
        .await?;
    Ok(rows
        .iter()
        .map(|row| DeviceKey {
            domain,
            device: row.get(0),
        })
        .collect())
}

/// Cuts a user or a device off, for a while, by a status of this time (Unix microseconds).
pub async fn suspend(
    tx: &Transaction<'_>,
    domain: i16,
    subject: Uuid,
    expired: bool,
    at_micros: i64,
) -> Result<u64, Error> {
    let sql = "/* revocations::suspend */ INSERT INTO suspended AS s (domain_id, subject_id, expired, at_micros) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (subject_id, domain_id, unknown) DO UPDATE SET at_micros = EXCLUDED.at_micros WHERE s.at_micros < EXCLUDED.at_micros";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&domain, &subject, &expired, &at_micros],
    )
    .await
}

/// Lets it in again, by a status of this time. One that is older than what cut it off lifts nothing: it was read again, after a restore. Neither does
/// any status lift what one of an unknown kind did.
pub async fn reinstate(
    tx: &Transaction<'_>,
    domain: i16,
    subject: Uuid,
    at_micros: i64,
) -> Result<u64, Error> {
    let sql = "/* revocations::reinstate */ DELETE FROM suspended WHERE domain_id = $1 AND subject_id = $2 AND NOT unknown AND at_micros <= $3";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&domain, &subject, &at_micros],
    )
    .await
}

/// Groups with a revoked member that is not marked yet. From the revoked devices on, whatever the planner knows of a table that is nearly always empty: it
/// would rather read all memberships.
pub async fn unmarked_groups<C: GenericClient>(
    client: &C,
    after: &[u8],
    at_most: i64,
) -> Result<Vec<Vec<u8>>, Error> {
    let sql = "/* revocations::unmarked_groups */ SELECT DISTINCT m.group_id FROM revoked_devices r, \
               LATERAL (SELECT group_id FROM device_groups WHERE device_id = r.device_id AND domain_id = r.domain_id AND member OFFSET 0) g, \
               LATERAL (SELECT group_id FROM members WHERE group_id = g.group_id AND device_id = r.device_id AND domain_id = r.domain_id \
                 AND removed_seq IS NULL AND pending <> 2 OFFSET 0) m \
               WHERE r.applied_at IS NULL AND m.group_id > $2 ORDER BY m.group_id LIMIT $1";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&at_most, &after])
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A revoked member that is not marked yet.
#[derive(Debug, Clone)]
pub struct Unmarked {
    /// The device.
    pub key: DeviceKey,
    /// Encoded `SignedStatus`.
    pub evidence: Vec<u8>,
}

/// The revoked members of a group that are not marked yet. The group's head is locked.
pub async fn unmarked_members(
    tx: &Transaction<'_>,
    group: &[u8],
    at_most: i64,
) -> Result<Vec<Unmarked>, Error> {
    let sql = "/* revocations::unmarked_members */ SELECT r.domain_id, r.device_id, r.evidence FROM members m \
               JOIN revoked_devices r ON r.device_id = m.device_id AND r.domain_id = m.domain_id \
               WHERE m.group_id = $1 AND m.removed_seq IS NULL AND m.pending <> 2 ORDER BY r.domain_id, r.device_id LIMIT $2";
    let rows = tx
        .query(&tx.prepare_cached(sql).await?, &[&group, &at_most])
        .await?;
    Ok(rows
        .iter()
        .map(|row| Unmarked {
            key: device_key(row),
            evidence: row.get(2),
        })
        .collect())
}

/// Marks a member as revoked; 0 where it is no member any more, or marked already. The group's head is locked.
pub async fn mark(
    tx: &Transaction<'_>,
    group: &[u8],
    key: DeviceKey,
    evidence: &[u8],
) -> Result<u64, Error> {
    let sql = "/* revocations::mark */ UPDATE members SET pending = 2, pending_evidence = $4 \
               WHERE group_id = $1 AND domain_id = $2 AND device_id = $3 AND removed_seq IS NULL AND pending <> 2";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &key.domain, &key.device, &evidence],
    )
    .await
}

/// Where no group of a revoked device is unmarked, its Welcomes go and the revocation is applied; how many are.
pub async fn apply_marked(tx: &Transaction<'_>) -> Result<u64, Error> {
    let sql = "/* revocations::apply_marked */ UPDATE revoked_devices r SET applied_at = now() WHERE r.applied_at IS NULL AND NOT EXISTS \
               (SELECT 1 FROM device_groups g JOIN members m ON m.group_id = g.group_id AND m.domain_id = g.domain_id \
                AND m.device_id = g.device_id AND m.removed_seq IS NULL AND m.pending <> 2 \
                WHERE g.domain_id = r.domain_id AND g.device_id = r.device_id AND g.member) RETURNING r.domain_id, r.device_id";
    let rows = tx.query(&tx.prepare_cached(sql).await?, &[]).await?;
    let keys: Vec<DeviceKey> = rows.iter().map(device_key).collect();
    let sql = "/* revocations::apply_marked */ DELETE FROM welcomes w USING unnest($1::smallint[], $2::uuid[]) AS d(domain_id, device_id) \
               WHERE w.domain_id = d.domain_id AND w.device_id = d.device_id";
    let (domains, ids) = columns(&keys);
    tx.execute(&tx.prepare_cached(sql).await?, &[&domains, &ids])
        .await?;
    Ok(keys.len() as u64)
}

/// After a void: members that were revoked meanwhile are marked again; how many revoked members there are.
pub async fn mark_again(tx: &Transaction<'_>, group: &[u8]) -> Result<u32, Error> {
    let sql = "/* revocations::mark_again */ UPDATE members m SET pending = 2, pending_evidence = r.evidence FROM revoked_devices r \
               WHERE m.group_id = $1 AND m.removed_seq IS NULL AND m.pending <> 2 AND r.domain_id = m.domain_id AND r.device_id = m.device_id";
    tx.execute(&tx.prepare_cached(sql).await?, &[&group])
        .await?;
    let sql = "/* revocations::mark_again */ SELECT count(*) FROM members WHERE group_id = $1 AND removed_seq IS NULL AND pending = 2";
    let row = tx
        .query_one(&tx.prepare_cached(sql).await?, &[&group])
        .await?;
    Ok(u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX))
}

/// A member that is to be removed.
#[derive(Debug, Clone)]
pub struct Pending {
    /// The device.
    pub key: DeviceKey,
    /// It asked for it itself.
    pub leaving: bool,
    /// The signed statement.
    pub evidence: Vec<u8>,
}

/// Members that are to be removed, in the order of their ids, after one of them.
pub async fn pending<C: GenericClient>(
    client: &C,
    group: &[u8],
    after: Option<DeviceKey>,
    at_most: u32,
) -> Result<Vec<Pending>, Error> {
    let sql = "/* revocations::pending */ SELECT domain_id, device_id, pending, coalesce(pending_evidence, ''::bytea) FROM members \
               WHERE group_id = $1 AND removed_seq IS NULL AND pending > 0 AND ($2::smallint IS NULL OR (domain_id, device_id) > ($2, $3)) \
               ORDER BY domain_id, device_id LIMIT $4";
    let (domain, device) = after.map(|key| (key.domain, key.device)).unzip();
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&group, &domain, &device, &i64::from(at_most)],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Pending {
            key: device_key(row),
            leaving: row.get::<_, i16>(2) == 1,
            evidence: row.get(3),
        })
        .collect())
}

/// Whether every other member asked to leave already.
pub async fn others_leave(
    tx: &Transaction<'_>,
    group: &[u8],
    key: DeviceKey,
) -> Result<bool, Error> {
    let sql = "/* revocations::others_leave */ SELECT NOT EXISTS (SELECT 1 FROM members WHERE group_id = $1 AND removed_seq IS NULL AND pending <> 1 \
               AND NOT (domain_id = $2 AND device_id = $3))";
    let row = tx
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[&group, &key.domain, &key.device],
        )
        .await?;
    Ok(row.get(0))
}

/// Takes the turn to be asked for a group, for one of these devices; the device, and until when (Unix microseconds). `None` while another one's turn lasts.
pub async fn take_turn<C: GenericClient>(
    client: &C,
    group: &[u8],
    device: DeviceKey,
    seconds: f64,
) -> Result<Option<i64>, Error> {
    let sql = "/* revocations::take_turn */ INSERT INTO asked (group_id, domain_id, device_id, until) \
               VALUES ($1, $2, $3, now() + $4 * interval '1 second') ON CONFLICT (group_id) DO UPDATE SET domain_id = EXCLUDED.domain_id, \
               device_id = EXCLUDED.device_id, until = EXCLUDED.until WHERE asked.until <= now() \
               RETURNING (extract(epoch FROM until) * 1000000)::bigint";
    let row = client
        .query_opt(
            &client.prepare_cached(sql).await?,
            &[&group, &device.domain, &device.device, &seconds],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// The first names of devices that must be removed, and until when somebody is already asked (Unix microseconds).
pub async fn barrier<C: GenericClient>(
    client: &C,
    group: &[u8],
    at_most: i64,
) -> Result<(Vec<DeviceKey>, Option<i64>), Error> {
    let sql = "/* revocations::barrier */ SELECT domain_id, device_id, \
               (SELECT (extract(epoch FROM until) * 1000000)::bigint FROM asked WHERE group_id = $1 AND until > now()) \
               FROM members WHERE group_id = $1 AND removed_seq IS NULL AND pending > 0 ORDER BY domain_id, device_id LIMIT $2";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&group, &at_most])
        .await?;
    let until = rows.first().and_then(|row| row.get(2));
    let devices = rows.iter().map(device_key).collect();
    Ok((devices, until))
}
