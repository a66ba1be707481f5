//! The inbox: one row for each joiner; what they share lives with the epoch.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::Error;

use crate::{
    ordering::group::DeviceKey,
    store::{hash32, signed, unsigned},
};

/// An unread Welcome.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The group.
    pub group: Vec<u8>,
    /// The adding Commit.
    pub seq: u64,
    /// RFC 9420 section 5.2.
    pub key_package_ref: Vec<u8>,
    /// The joiner's EncryptedGroupSecrets.
    pub secrets: Vec<u8>,
    /// Shared by all joiners of the Commit.
    pub encrypted_group_info: Vec<u8>,
    /// Unix seconds.
    pub expires_at: i64,
    /// Chain value at `seq`.
    pub chain: [u8; 32],
    /// The group's cipher suite.
    pub suite: u16,
}

/// Stores one joiner's part.
pub async fn insert(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    joiner: DeviceKey,
    key_package_ref: &[u8],
    secrets: &[u8],
    lifetime_seconds: u64,
) -> Result<(), Error> {
    let sql = "/* welcomes::insert */ INSERT INTO welcomes (group_id, commit_seq, domain_id, device_id, key_package_ref, secrets, expires_at) \
               VALUES ($1, $2, $3, $4, $5, $6, now() + $7 * interval '1 second')";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &group,
            &signed(seq),
            &joiner.domain,
            &joiner.device,
            &key_package_ref,
            &secrets,
            &(lifetime_seconds as f64),
        ],
    )
    .await?;
    Ok(())
}

/// Unread Welcomes of a device, oldest first.
pub async fn unread<C: GenericClient>(
    client: &C,
    joiner: DeviceKey,
    at_most: u32,
) -> Result<Vec<Stored>, Error> {
    let sql = "/* welcomes::unread */ SELECT w.group_id, w.commit_seq, w.key_package_ref, w.secrets, e.encrypted_group_info, \
               extract(epoch FROM w.expires_at)::bigint, l.chain, g.suite \
               FROM welcomes w JOIN epochs e ON e.group_id = w.group_id AND e.epoch_seq = w.commit_seq \
               JOIN log l ON l.group_id = w.group_id AND l.seq = w.commit_seq JOIN groups g ON g.group_id = w.group_id \
               WHERE w.domain_id = $1 AND w.device_id = $2 AND w.acked_at IS NULL AND w.expires_at > now() \
               AND e.encrypted_group_info IS NOT NULL ORDER BY l.accepted_at, w.group_id, w.commit_seq LIMIT $3";
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&joiner.domain, &joiner.device, &i64::from(at_most)],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Stored {
            group: row.get(0),
            seq: unsigned(row.get(1)),
            key_package_ref: row.get(2),
            secrets: row.get(3),
            encrypted_group_info: row.get(4),
            expires_at: row.get(5),
            chain: hash32(row.get(6)),
            suite: u16::try_from(row.get::<_, i32>(7)).unwrap_or(0),
        })
        .collect())
}

/// Hides a read Welcome; it stays until it expires.
pub async fn acknowledge(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    joiner: DeviceKey,
) -> Result<u64, Error> {
    let sql = "/* welcomes::acknowledge */ UPDATE welcomes SET acked_at = coalesce(acked_at, now()) \
               WHERE group_id = $1 AND commit_seq = $2 AND domain_id = $3 AND device_id = $4";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &signed(seq), &joiner.domain, &joiner.device],
    )
    .await
}
