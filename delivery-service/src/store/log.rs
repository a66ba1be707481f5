//! The append-only log of each group.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Row, Statement};
use uuid::Uuid;

use crate::{
    ordering::group::{DeviceKey, Prior},
    store::{groups::HeadMove, hash32, place_of, signed, unsigned},
};

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

/// A new row.
#[derive(Debug)]
pub struct EntryRow<'a> {
    /// Whose log.
    pub group: &'a [u8],
    /// The seq before + 1.
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
    /// MLSMessage bytes.
    pub payload: &'a [u8],
}

impl EntryRow<'_> {
    /// As whoever repeats it in the same batch finds it; members only get that far.
    pub fn as_prior(&self) -> Prior {
        Prior {
            seq: self.seq,
            epoch: self.epoch,
            epoch_seq: self.epoch_seq,
            kind: self.kind,
            content_hash: self.content_hash,
            chain: self.chain,
            accepted_at: self.accepted_at,
            readable: true,
            voided_by: None,
        }
    }
}

/// Appends one entry under the group's lock.
pub async fn append(tx: &Transaction<'_>, entry: &EntryRow<'_>) -> Result<(), Error> {
    let sql = "/* log::append */ INSERT INTO log (group_id, seq, epoch, epoch_seq, kind, message_id, accepted_at, content_hash, chain, payload) \
               VALUES ($1, $2, $3, $4, $5, $6, 'epoch'::timestamptz + $7 * interval '1 microsecond', $8, $9, $10)";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &entry.group,
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

/// Moves the heads of several groups and appends what comes behind them: prepared, so that the COMMIT can follow in the same round trip.
#[derive(Debug)]
pub struct AppendMany(Statement);

impl AppendMany {
    /// Gets the statement ready. It fails unless every head is, once it is locked, as it was read.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        // `assume` ends the transaction, COMMIT or not: an entry without its head, or a head without its entries, must
        // never be. With seq and chain the same entries were taken; what else a head holds changes with an entry, but
        // for what is settled and for the end of the group.
        let sql = "/* log::append_many */ WITH moved AS (\
                   UPDATE group_heads h SET head_seq = n.head_seq, settled_seq = n.settled_seq, chain = n.chain, \
                   last_at = 'epoch'::timestamptz + n.last_at * interval '1 microsecond', \
                   committer_domain = CASE WHEN n.settles THEN NULL ELSE h.committer_domain END, \
                   committer_device = CASE WHEN n.settles THEN NULL ELSE h.committer_device END, \
                   committer_user = CASE WHEN n.settles THEN NULL ELSE h.committer_user END, \
                   confirm_by = CASE WHEN n.settles THEN 0 ELSE h.confirm_by END \
                   FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::float8[], $9::boolean[]) \
                   AS n(group_id, before_seq, before_chain, before_settled, head_seq, settled_seq, chain, last_at, settles) \
                   WHERE h.group_id = n.group_id \
                   AND h.head_seq = n.before_seq AND h.chain = n.before_chain AND h.settled_seq = n.before_settled AND h.state = 1 RETURNING 1) \
                   INSERT INTO log (group_id, seq, epoch, epoch_seq, kind, message_id, accepted_at, content_hash, chain, payload) \
                   SELECT r.group_id, r.seq, r.epoch, r.epoch_seq, r.kind, r.message_id, 'epoch'::timestamptz + r.accepted_at * interval '1 microsecond', \
                   r.content_hash, r.chain, r.payload \
                   FROM unnest($10::bytea[], $11::bigint[], $12::bigint[], $13::bigint[], $14::smallint[], $15::uuid[], $16::float8[], $17::bytea[], $18::bytea[], \
                   $19::bytea[]) \
                   AS r(group_id, seq, epoch, epoch_seq, kind, message_id, accepted_at, content_hash, chain, payload) \
                   WHERE (SELECT assume(count(*) = $20) FROM moved)";
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// Returns the rows written.
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        moves: &[HeadMove<'_>],
        rows: &[EntryRow<'_>],
    ) -> Result<u64, Error> {
        let groups: Vec<&[u8]> = moves.iter().map(|m| m.group).collect();
        let before_seqs: Vec<i64> = moves.iter().map(|m| signed(m.before.seq)).collect();
        let before_chains: Vec<&[u8]> = moves.iter().map(|m| m.before.chain.as_slice()).collect();
        let before_settled: Vec<i64> = moves.iter().map(|m| signed(m.before.settled_seq)).collect();
        let heads: Vec<i64> = moves.iter().map(|m| signed(m.after.seq)).collect();
        let settled: Vec<i64> = moves.iter().map(|m| signed(m.after.settled_seq)).collect();
        let last_chains: Vec<&[u8]> = moves.iter().map(|m| m.after.chain.as_slice()).collect();
        let last_times: Vec<f64> = moves.iter().map(|m| m.after.last_at as f64).collect();
        let settles: Vec<bool> = moves.iter().map(|m| m.after.committer.is_none()).collect();
        let logs: Vec<&[u8]> = rows.iter().map(|row| row.group).collect();
        let seqs: Vec<i64> = rows.iter().map(|row| signed(row.seq)).collect();
        let epochs: Vec<i64> = rows.iter().map(|row| signed(row.epoch)).collect();
        let epoch_seqs: Vec<i64> = rows.iter().map(|row| signed(row.epoch_seq)).collect();
        let kinds: Vec<i16> = rows.iter().map(|row| row.kind).collect();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.message_id).collect();
        let times: Vec<f64> = rows.iter().map(|row| row.accepted_at as f64).collect();
        let hashes: Vec<&[u8]> = rows.iter().map(|row| row.content_hash.as_slice()).collect();
        let chains: Vec<&[u8]> = rows.iter().map(|row| row.chain.as_slice()).collect();
        let payloads: Vec<&[u8]> = rows.iter().map(|row| row.payload).collect();
        client
            .execute(
                &self.0,
                &[
                    &groups,
                    &before_seqs,
                    &before_chains,
                    &before_settled,
                    &heads,
                    &settled,
                    &last_chains,
                    &last_times,
                    &settles,
                    &logs,
                    &seqs,
                    &epochs,
                    &epoch_seqs,
                    &kinds,
                    &ids,
                    &times,
                    &hashes,
                    &chains,
                    &payloads,
                    &signed(moves.len() as u64),
                ],
            )
            .await
    }
}

/// What is known of an entry besides its payload, and whether a device may read it; the entry is `l`, the device named by the two arguments.
macro_rules! prior_columns {
    ($domain:literal, $device:literal) => {
        concat!(
            "l.seq, l.epoch, l.epoch_seq, l.kind, l.content_hash, l.chain, (extract(epoch FROM l.accepted_at) * 1000000)::bigint AS accepted_at, \
             EXISTS (SELECT 1 FROM members m WHERE m.group_id = l.group_id AND m.domain_id = ", $domain, " AND m.device_id = ", $device, " \
                     AND m.joined_seq <= l.seq AND (m.removed_seq IS NULL OR l.seq <= m.removed_seq)) AS readable, \
             (SELECT min(v.void_seq) FROM voids v WHERE v.group_id = l.group_id AND l.seq BETWEEN v.first_seq AND v.last_seq \
              AND (l.seq = v.first_seq OR l.epoch_seq >= v.first_seq) AND l.kind <= 4) AS voided_by"
        )
    };
}

fn prior_of(row: &Row) -> Prior {
    Prior {
        seq: unsigned(row.get("seq")),
        epoch: unsigned(row.get("epoch")),
        epoch_seq: unsigned(row.get("epoch_seq")),
        kind: row.get("kind"),
        content_hash: hash32(row.get("content_hash")),
        chain: hash32(row.get("chain")),
        accepted_at: row.get("accepted_at"),
        readable: row.get("readable"),
        voided_by: row.get::<_, Option<i64>>("voided_by").map(unsigned),
    }
}

/// The entry that holds `message_id`, and whether the device may read it.
pub async fn prior(
    tx: &Transaction<'_>,
    group: &[u8],
    message_id: Uuid,
    reader: DeviceKey,
) -> Result<Option<Prior>, Error> {
    let sql = concat!(
        "/* log::prior */ SELECT ",
        prior_columns!("$3", "$4"),
        " FROM log l WHERE l.group_id = $1 AND l.message_id = $2"
    );
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&group, &message_id, &reader.domain, &reader.device],
        )
        .await?;
    Ok(row.as_ref().map(prior_of))
}

/// Which entry is looked for, and who would read it.
#[derive(Debug)]
pub struct PriorQuery<'a> {
    /// Whose log.
    pub group: &'a [u8],
    /// Which id.
    pub message_id: Uuid,
    /// For whom.
    pub reader: DeviceKey,
}

/// [`prior`] for several messages: prepared, so that it can follow a lock in the same round trip.
#[derive(Debug)]
pub struct Priors(Statement);

impl Priors {
    /// Gets the statement ready.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        let sql = concat!(
            "/* log::priors */ SELECT q.n, p.* FROM unnest($1::bytea[], $2::uuid[], $3::smallint[], $4::uuid[]) WITH ORDINALITY \
             AS q(group_id, message_id, domain_id, device_id, n) CROSS JOIN LATERAL (SELECT ",
            prior_columns!("q.domain_id", "q.device_id"),
            " FROM log l WHERE l.group_id = q.group_id AND l.message_id = q.message_id OFFSET 0) p"
        );
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// Entries that were found, each with the place of its query.
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        queries: &[PriorQuery<'_>],
    ) -> Result<Vec<(usize, Prior)>, Error> {
        let groups: Vec<&[u8]> = queries.iter().map(|q| q.group).collect();
        let ids: Vec<Uuid> = queries.iter().map(|q| q.message_id).collect();
        let domains: Vec<i16> = queries.iter().map(|q| q.reader.domain).collect();
        let devices: Vec<Uuid> = queries.iter().map(|q| q.reader.device).collect();
        let rows = client
            .query(&self.0, &[&groups, &ids, &domains, &devices])
            .await?;
        let found = rows.iter().map(|row| (place_of(row), prior_of(row)));
        Ok(found.collect())
    }
}

/// The chain value after `seq`; absent where there is no such entry.
pub async fn chain_at<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Option<[u8; 32]>, Error> {
    let sql = "/* log::chain_at */ SELECT chain FROM log WHERE group_id = $1 AND seq = $2";
    let row = client
        .query_opt(&client.prepare_cached(sql).await?, &[&group, &signed(seq)])
        .await?;
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
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[&group, &seqs, &signed(epoch_seq)],
        )
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

macro_rules! entry_columns {
    () => {
        "l.seq, l.epoch, l.epoch_seq, l.kind, l.message_id, (extract(epoch FROM l.accepted_at) * 1000000)::bigint AS at_micros, l.content_hash, l.chain, \
         l.pruned, length(l.payload)::bigint AS payload_bytes, \
         (SELECT e.group_state_hash FROM epochs e WHERE e.group_id = l.group_id AND e.epoch_seq = l.seq) AS group_state_hash"
    };
}

/// The next entries, in order.
pub async fn read_after<C: GenericClient>(
    client: &C,
    group: &[u8],
    page: Page,
) -> Result<Vec<Entry>, Error> {
    let sql = concat!(
        "/* log::read_after */ SELECT ",
        entry_columns!(),
        ", CASE WHEN length(l.payload) <= $5 THEN l.payload ELSE ''::bytea END AS payload \
         FROM log l WHERE l.group_id = $1 AND l.seq > $2 AND l.seq <= $3 ORDER BY l.seq LIMIT $4"
    );
    let inline = i32::try_from(page.inline_payload_bytes).unwrap_or(i32::MAX);
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
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

/// The next entries of several logs, each with the place of its group in the question; at most so many of each.
pub async fn read_many<C: GenericClient>(
    client: &C,
    groups: &[(&[u8], u64)],
    entries: u32,
    inline_payload_bytes: u32,
) -> Result<Vec<(usize, Entry)>, Error> {
    let sql = concat!(
        "/* log::read_many */ SELECT q.n, p.* FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS q(group_id, after, n) \
         CROSS JOIN LATERAL (SELECT ",
        entry_columns!(),
        ", CASE WHEN length(l.payload) <= $4 THEN l.payload ELSE ''::bytea END AS payload \
         FROM log l WHERE l.group_id = q.group_id AND l.seq > q.after ORDER BY l.seq LIMIT $3) p ORDER BY q.n, p.seq"
    );
    let (ids, afters): (Vec<&[u8]>, Vec<i64>) =
        groups.iter().map(|(id, seq)| (*id, signed(*seq))).unzip();
    let inline = i32::try_from(inline_payload_bytes).unwrap_or(i32::MAX);
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&ids, &afters, &i64::from(entries), &inline],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| (place_of(row), entry_of(row)))
        .collect())
}

fn entry_of(row: &Row) -> Entry {
    Entry {
        seq: unsigned(row.get("seq")),
        epoch: unsigned(row.get("epoch")),
        epoch_seq: unsigned(row.get("epoch_seq")),
        kind: row.get("kind"),
        message_id: row.get("message_id"),
        accepted_at: row.get("at_micros"),
        content_hash: hash32(row.get("content_hash")),
        chain: hash32(row.get("chain")),
        payload: row.get("payload"),
        payload_bytes: unsigned(row.get("payload_bytes")),
        group_state_hash: row.get("group_state_hash"),
        pruned: row.get("pruned"),
    }
}

/// One entry's payload, whole.
pub async fn payload<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Option<Vec<u8>>, Error> {
    let sql = "/* log::payload */ SELECT payload FROM log WHERE group_id = $1 AND seq = $2 AND NOT pruned";
    let row = client
        .query_opt(&client.prepare_cached(sql).await?, &[&group, &signed(seq)])
        .await?;
    Ok(row.map(|row| row.get(0)))
}
