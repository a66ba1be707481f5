//! Rows that are too old. Kinds of entries are named: one that this program does not know is never touched.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::Error;

/// Ages in days.
#[derive(Debug, Clone, Copy)]
pub struct Cutoffs {
    /// Of application messages.
    pub messages_days: i64,
    /// Of everything else in a log.
    pub handshakes_days: i64,
}

/// Lets this transaction find entries by their age: `log_age` is a BRIN, which only bitmap scans read, and the pool forbids these for look-ups by key.
async fn by_age(tx: &Transaction<'_>) -> Result<(), Error> {
    tx.batch_execute("SET LOCAL enable_bitmapscan = on").await
}

/// Takes the payloads of old application messages away; how many.
pub async fn empty(tx: &Transaction<'_>, cutoffs: Cutoffs, at_most: i64) -> Result<u64, Error> {
    by_age(tx).await?;
    let sql = "/* retention::empty */ UPDATE log SET payload = ''::bytea, pruned = true FROM (SELECT group_id, seq FROM log \
               WHERE accepted_at < now() - $1 * interval '1 day' AND kind = 4 AND NOT pruned LIMIT $2 FOR UPDATE SKIP LOCKED) AS old \
               WHERE log.group_id = old.group_id AND log.seq = old.seq";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&(cutoffs.messages_days as f64), &at_most],
    )
    .await
}

/// Groups whose first entries are older than handshakes are kept.
pub async fn with_old_entries(
    tx: &Transaction<'_>,
    cutoffs: Cutoffs,
) -> Result<Vec<Vec<u8>>, Error> {
    by_age(tx).await?;
    let sql = "/* retention::with_old_entries */ SELECT DISTINCT l.group_id FROM log l JOIN group_heads h ON h.group_id = l.group_id \
               WHERE l.accepted_at < now() - $1 * interval '1 day' AND l.seq > h.commits_pruned_to AND l.seq < h.epoch_seq ORDER BY l.group_id LIMIT 10000";
    let rows = tx
        .query(
            &tx.prepare_cached(sql).await?,
            &[&(cutoffs.handshakes_days as f64)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Deletes the beginning of a group's log, at most so many rows, and says in the head up to where. The current epoch's Commit and what came after it
/// stay at any age, and so does everything from the first entry of an unknown kind on. The head is locked.
pub async fn delete_beginning(
    tx: &Transaction<'_>,
    group: &[u8],
    cutoffs: Cutoffs,
    at_most: i64,
) -> Result<u64, Error> {
    let sql = "/* retention::delete_beginning */ WITH old AS (SELECT l.seq FROM log l JOIN group_heads h ON h.group_id = l.group_id \
               WHERE l.group_id = $1 AND l.seq > h.commits_pruned_to AND l.seq < h.epoch_seq AND l.accepted_at < now() - $2 * interval '1 day' \
               AND NOT EXISTS (SELECT 1 FROM log u WHERE u.group_id = $1 AND u.seq <= l.seq AND u.kind NOT BETWEEN 1 AND 8) ORDER BY l.seq LIMIT $3) \
               UPDATE group_heads SET commits_pruned_to = (SELECT max(seq) FROM old), messages_pruned_to = (SELECT max(seq) FROM old) \
               WHERE group_id = $1 AND EXISTS (SELECT 1 FROM old) RETURNING commits_pruned_to";
    let days = cutoffs.handshakes_days as f64;
    let Some(row) = tx
        .query_opt(&tx.prepare_cached(sql).await?, &[&group, &days, &at_most])
        .await?
    else {
        return Ok(0);
    };
    let last: i64 = row.get(0);
    let sql = "/* retention::delete_beginning */ UPDATE log SET payload = ''::bytea, pruned = true WHERE group_id = $1 AND seq = $2";
    tx.execute(&tx.prepare_cached(sql).await?, &[&group, &last])
        .await?;
    let sql = "/* retention::delete_beginning */ DELETE FROM log WHERE group_id = $1 AND seq < $2";
    let deleted = tx
        .execute(&tx.prepare_cached(sql).await?, &[&group, &last])
        .await?;
    Ok(deleted.max(1))
}

/// Up to where a group's log is gone: that entry is still there, empty.
pub async fn pruned_to<C: GenericClient>(client: &C, group: &[u8]) -> Result<u64, Error> {
    let sql =
        "/* retention::pruned_to */ SELECT commits_pruned_to FROM group_heads WHERE group_id = $1";
    let row = client
        .query_opt(&client.prepare_cached(sql).await?, &[&group])
        .await?;
    Ok(row.map_or(0, |row| crate::store::unsigned(row.get(0))))
}

/// Welcomes, KeyPackages and claims that nobody can use any more.
pub async fn delete_expired(tx: &Transaction<'_>, at_most: i64) -> Result<u64, Error> {
    let mut deleted = 0;
    for sql in [
        "/* retention::delete_expired */ DELETE FROM welcomes WHERE (group_id, commit_seq, device_id, domain_id) IN \
         (SELECT group_id, commit_seq, device_id, domain_id FROM welcomes WHERE expires_at < now() LIMIT $1 FOR UPDATE SKIP LOCKED)",
        "/* retention::delete_expired */ DELETE FROM key_packages WHERE (device_id, domain_id, ref) IN \
         (SELECT device_id, domain_id, ref FROM key_packages WHERE not_after < now() - interval '1 day' LIMIT $1 FOR UPDATE SKIP LOCKED)",
        "/* retention::delete_expired */ DELETE FROM key_packages WHERE (device_id, domain_id, ref) IN \
         (SELECT device_id, domain_id, ref FROM key_packages WHERE retired_at < now() - interval '2 days' LIMIT $1 FOR UPDATE SKIP LOCKED)",
        "/* retention::delete_expired */ DELETE FROM key_package_claims WHERE (device_id, domain_id, claim_id) IN \
         (SELECT device_id, domain_id, claim_id FROM key_package_claims WHERE claimed_at < now() - interval '2 days' LIMIT $1 FOR UPDATE SKIP LOCKED)",
    ] {
        deleted += tx
            .execute(&tx.prepare_cached(sql).await?, &[&at_most])
            .await?;
    }
    Ok(deleted)
}
