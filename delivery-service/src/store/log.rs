//! The append-only log of each group.

use tokio_postgres::{Error, GenericClient, Row, Transaction};
use uuid::Uuid;

use super::{hash32, signed, unsigned};
use crate::group::{DeviceKey, Prior};

/// One row of the log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Dense from 1.
    pub seq: u64,
    /// Epoch number of the framing.
    pub epoch: u64,
    /// Name of that epoch.
    pub epoch_seq: u64,
    /// `EntryKind`.
    pub kind: i16,
    /// Made by the client.
    pub message_id: Uuid,
    /// Unix microseconds.
    pub accepted_at: i64,
    /// SHA-256 of the request.
    pub content_hash: [u8; 32],
    /// Chain value after this entry.
    pub chain: [u8; 32],
    /// MLSMessage bytes; only its first bytes where the reader asked for a bound.
    pub payload: Vec<u8>,
    /// Size of the whole payload in bytes.
    pub payload_bytes: u64,
    /// Commits: hash of the GroupInfo's state.
    pub group_state_hash: Option<Vec<u8>>,
    /// Past retention: the payload is gone.
    pub pruned: bool,
}

/// Appends one entry under the group's lock.
pub async fn append(tx: &Transaction<'_>, group: &[u8], entry: &Entry) -> Result<(), Error> {
    let sql = "/* log::append */ INSERT INTO log (group_id, seq, epoch, epoch_seq, kind, message_id, accepted_at, content_hash, chain, payload) \
               VALUES ($1, $2, $3, $4, $5, $6, 'epoch'::timestamptz + $7 * interval '1 microsecond', $8, $9, $10)";
    tx.execute(
        sql,
        &[
            &group,
            &signed(entry.seq),
            &signed(entry.epoch),
            &signed(entry.epoch_seq),
            &entry.kind,
            &entry.message_id,
            &(entry.accepted_at as f64),
            &entry.content_hash.as_slice(),
            &entry.chain.as_slice(),
            &entry.payload,
        ],
    )
    .await?;
    Ok(())
}

/// The entry that holds `message_id`, and whether the device may read it.
pub async fn prior(
    tx: &Transaction<'_>,
    group: &[u8],
    message_id: Uuid,
    reader: DeviceKey,
) -> Result<Option<Prior>, Error> {
    let sql = "/* log::prior */ SELECT l.seq, l.epoch, l.epoch_seq, l.kind, l.content_hash, l.chain, \
               (extract(epoch FROM l.accepted_at) * 1000000)::bigint, \
               EXISTS (SELECT 1 FROM members m WHERE m.group_id = l.group_id AND m.domain_id = $3 AND m.device_id = $4 \
                       AND m.joined_seq <= l.seq AND (m.removed_seq IS NULL OR l.seq <= m.removed_seq)), \
               (SELECT min(v.void_seq) FROM voids v WHERE v.group_id = l.group_id AND l.seq BETWEEN v.first_seq AND v.last_seq \
                AND (l.seq = v.first_seq OR l.epoch_seq >= v.first_seq) AND l.kind <= 4) \
               FROM log l WHERE l.group_id = $1 AND l.message_id = $2";
    let row = tx
        .query_opt(sql, &[&group, &message_id, &reader.domain, &reader.device])
        .await?;
    Ok(row.map(|row| Prior {
        seq: unsigned(row.get(0)),
        epoch: unsigned(row.get(1)),
        epoch_seq: unsigned(row.get(2)),
        kind: row.get(3),
        content_hash: hash32(row.get(4)),
        chain: hash32(row.get(5)),
        accepted_at: row.get(6),
        readable: row.get(7),
        voided_by: row.get::<_, Option<i64>>(8).map(unsigned),
    }))
}

/// The chain value after `seq`; absent where there is no such entry.
pub async fn chain_at<C: GenericClient + Sync>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Option<[u8; 32]>, Error> {
    let sql = "/* log::chain_at */ SELECT chain FROM log WHERE group_id = $1 AND seq = $2";
    let row = client.query_opt(sql, &[&group, &signed(seq)]).await?;
    Ok(row.map(|row| hash32(row.get(0))))
}

/// How many of these seqs are proposals framed in this epoch.
pub async fn count_proposals(
    tx: &Transaction<'_>,
    group: &[u8],
    epoch_seq: u64,
    seqs: &[u64],
) -> Result<usize, Error> {
    let sql = "/* log::count_proposals */ SELECT count(*) FROM log WHERE group_id = $1 AND seq = ANY($2) AND epoch_seq = $3 AND kind = 3";
    let seqs: Vec<i64> = seqs.iter().map(|seq| signed(*seq)).collect();
    let row = tx
        .query_one(sql, &[&group, &seqs, &signed(epoch_seq)])
        .await?;
    Ok(usize::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Bounds of a page.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Entries after this one.
    pub after: u64,
    /// Up to and with this one.
    pub until: u64,
    /// At most so many.
    pub entries: u32,
    /// Payloads above so many bytes are not read (`payload` is empty then).
    pub inline_payload_bytes: u32,
}

/// The next entries, in order.
pub async fn read_after<C: GenericClient + Sync>(
    client: &C,
    group: &[u8],
    page: Page,
) -> Result<Vec<Entry>, Error> {
    let sql = "/* log::read_after */ SELECT l.seq, l.epoch, l.epoch_seq, l.kind, l.message_id, \
               (extract(epoch FROM l.accepted_at) * 1000000)::bigint, l.content_hash, l.chain, \
               CASE WHEN length(l.payload) <= $5 THEN l.payload ELSE ''::bytea END, length(l.payload)::bigint, e.group_state_hash, l.pruned \
               FROM log l LEFT JOIN epochs e ON e.group_id = l.group_id AND e.epoch_seq = l.seq \
               WHERE l.group_id = $1 AND l.seq > $2 AND l.seq <= $3 ORDER BY l.seq LIMIT $4";
    let inline = i32::try_from(page.inline_payload_bytes).unwrap_or(i32::MAX);
    let rows = client
        .query(
            sql,
            &[
                &group,
                &signed(page.after),
                &signed(page.until),
                &i64::from(page.entries),
                &inline,
            ],
        )
        .await?;
    Ok(rows.iter().map(entry_of).collect())
}

fn entry_of(row: &Row) -> Entry {
    Entry {
        seq: unsigned(row.get(0)),
        epoch: unsigned(row.get(1)),
        epoch_seq: unsigned(row.get(2)),
        kind: row.get(3),
        message_id: row.get(4),
        accepted_at: row.get(5),
        content_hash: hash32(row.get(6)),
        chain: hash32(row.get(7)),
        payload: row.get(8),
        payload_bytes: unsigned(row.get(9)),
        group_state_hash: row.get(10),
        pruned: row.get(11),
    }
}

/// One entry's payload, whole.
pub async fn payload<C: GenericClient + Sync>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Option<Vec<u8>>, Error> {
    let sql = "/* log::payload */ SELECT payload FROM log WHERE group_id = $1 AND seq = $2 AND NOT pruned";
    let row = client.query_opt(sql, &[&group, &signed(seq)]).await?;
    Ok(row.map(|row| row.get(0)))
}
