//! What members say of epochs, and epochs taken back.

use std::time::SystemTime;

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::{
    ordering::group::DeviceKey,
    store::{device_key, signed, unsigned},
};

/// How many due epochs are read at once.
pub const DUE_PAGE: usize = 100;

/// What a device says of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It is in it, with this hash of its exporter.
    Hash(Vec<u8>),
    /// It cannot come to it.
    Failure {
        /// `FailureReason`.
        reason: i16,
        /// Encoded `FailureReport`.
        report: Vec<u8>,
    },
}

/// Notes a report. A device that came to the epoch after all takes its failure back; one that was there stays there.
pub async fn report(
    tx: &Transaction<'_>,
    group: &[u8],
    epoch_seq: u64,
    reporter: (DeviceKey, Uuid),
    said: &Said,
) -> Result<u64, Error> {
    let sql = "/* recovery::report */ INSERT INTO epoch_reports (group_id, epoch_seq, domain_id, device_id, user_id, state_hash, failure, report, at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp()) ON CONFLICT (group_id, epoch_seq, device_id, domain_id) DO UPDATE \
               SET state_hash = EXCLUDED.state_hash, failure = EXCLUDED.failure, report = EXCLUDED.report \
               WHERE epoch_reports.failure IS NOT NULL";
    let (hash, failure, report) = match said {
        Said::Hash(hash) => (Some(hash), None, None),
        Said::Failure { reason, report } => (None, Some(*reason), Some(report)),
    };
    let (key, user) = reporter;
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &group,
            &signed(epoch_seq),
            &key.domain,
            &key.device,
            &user,
            &hash,
            &failure,
            &report,
        ],
    )
    .await
}

/// The failures of an epoch that stand.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    /// Each user once.
    pub users: Vec<Uuid>,
    /// The first, Unix microseconds.
    pub first_at: i64,
    /// Encoded `FailureReport`s.
    pub reports: Vec<Vec<u8>>,
}

/// The failures that were reported of an epoch.
pub async fn failures(
    tx: &Transaction<'_>,
    group: &[u8],
    epoch_seq: u64,
) -> Result<Failures, Error> {
    let sql = "/* recovery::failures */ SELECT user_id, report, (extract(epoch FROM at) * 1000000)::bigint FROM epoch_reports \
               WHERE group_id = $1 AND epoch_seq = $2 AND failure IS NOT NULL AND user_id IS NOT NULL AND report IS NOT NULL ORDER BY at, device_id";
    let rows = tx
        .query(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(epoch_seq)],
        )
        .await?;
    let mut failures = Failures {
        first_at: rows.first().map_or(i64::MAX, |row| row.get(2)),
        ..Failures::default()
    };
    for row in &rows {
        let user: Uuid = row.get(0);
        if !failures.users.contains(&user) {
            failures.users.push(user);
            failures.reports.push(row.get(1));
        }
    }
    Ok(failures)
}

/// How many different hashes were reported of an epoch: more than one is a fork.
pub async fn distinct_hashes<C: GenericClient>(
    client: &C,
    group: &[u8],
    epoch_seq: u64,
) -> Result<u64, Error> {
    let sql = "/* recovery::distinct_hashes */ SELECT count(DISTINCT state_hash) FROM epoch_reports WHERE group_id = $1 AND epoch_seq = $2";
    let row = client
        .query_one(
            &client.prepare_cached(sql).await?,
            &[&group, &signed(epoch_seq)],
        )
        .await?;
    Ok(unsigned(row.get(0)))
}

/// When the failures of an epoch are to be looked at: `seconds` after the first, or now.
pub async fn look_at(
    tx: &Transaction<'_>,
    group: &[u8],
    epoch_seq: u64,
    seconds: f64,
) -> Result<u64, Error> {
    let sql = "/* recovery::look_at */ UPDATE epochs SET void_at = greatest(now(), (SELECT min(at) FROM epoch_reports r \
               WHERE r.group_id = $1 AND r.epoch_seq = $2 AND r.failure IS NOT NULL) + $3 * interval '1 second') WHERE group_id = $1 AND epoch_seq = $2";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &signed(epoch_seq), &seconds],
    )
    .await
}

/// Nothing more is to be looked at until the next failure.
pub async fn looked_at(tx: &Transaction<'_>, group: &[u8], epoch_seq: u64) -> Result<u64, Error> {
    let sql = "/* recovery::looked_at */ UPDATE epochs SET void_at = NULL WHERE group_id = $1 AND epoch_seq = $2";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &signed(epoch_seq)],
    )
    .await
}

/// An epoch whose reported failures are due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Since when.
    pub at: SystemTime,
    /// The group.
    pub group: Vec<u8>,
    /// The seq of the Commit that began the epoch.
    pub epoch_seq: u64,
}

/// The next epochs whose failures are due after the one that is named, in a fixed order; at most [`DUE_PAGE`].
pub async fn due<C: GenericClient>(client: &C, after: Option<&Due>) -> Result<Vec<Due>, Error> {
    let sql = "/* recovery::due */ SELECT void_at, group_id, epoch_seq FROM epochs \
               WHERE void_at <= now() AND ($1::timestamptz IS NULL OR (void_at, group_id, epoch_seq) > ($1, $2, $3)) \
               ORDER BY void_at, group_id, epoch_seq LIMIT $4";
    let at = after.map(|due| due.at);
    let group = after.map_or(&[][..], |due| &due.group);
    let epoch_seq = signed(after.map_or(0, |due| due.epoch_seq));
    let limit = i64::try_from(DUE_PAGE).unwrap_or(i64::MAX);
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&at, &group, &epoch_seq, &limit],
        )
        .await?;
    let due = |row: &Row| Due {
        at: row.get(0),
        group: row.get(1),
        epoch_seq: unsigned(row.get(2)),
    };
    Ok(rows.iter().map(due).collect())
}

/// Users other than this one with a device that was a member before the Commit at `seq` and after it, whatever was built on it.
pub async fn other_users(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    user: Uuid,
) -> Result<usize, Error> {
    let sql = "/* recovery::other_users */ SELECT count(DISTINCT user_id) FROM members \
               WHERE group_id = $1 AND joined_seq < $2 AND (removed_seq IS NULL OR removed_seq > $2) AND user_id <> $3";
    let row = tx
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(seq), &user],
        )
        .await?;
    Ok(usize::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Puts roster, epochs, trees and Welcomes back to before the Commit at `first`, by the VOID entry at `void`; the devices whose list of groups changed.
pub async fn restore(
    tx: &Transaction<'_>,
    group: &[u8],
    first: u64,
    void: u64,
) -> Result<Vec<DeviceKey>, Error> {
    let (first, void) = (signed(first), signed(void));
    // Who came by it goes, first: a device may have but one open membership.
    let sql = "/* recovery::restore */ UPDATE members SET removed_seq = $3, voided = true, pending = 0 \
               WHERE group_id = $1 AND joined_seq >= $2 AND NOT voided RETURNING domain_id, device_id";
    let gone = tx
        .query(&tx.prepare_cached(sql).await?, &[&group, &first, &void])
        .await?;
    let sql = "/* recovery::restore */ UPDATE members SET removed_seq = NULL \
               WHERE group_id = $1 AND removed_seq >= $2 AND joined_seq < $2 RETURNING domain_id, device_id";
    let back = tx
        .query(&tx.prepare_cached(sql).await?, &[&group, &first])
        .await?;
    let sql = "/* recovery::restore */ UPDATE device_groups g SET seq = $3, member = EXISTS (SELECT 1 FROM members m WHERE m.group_id = $1 \
               AND m.device_id = g.device_id AND m.domain_id = g.domain_id AND m.removed_seq IS NULL) \
               WHERE g.group_id = $1 AND EXISTS (SELECT 1 FROM members m WHERE m.group_id = $1 AND m.device_id = g.device_id \
               AND m.domain_id = g.domain_id AND (m.joined_seq >= $2 OR g.seq >= $2))";
    tx.execute(&tx.prepare_cached(sql).await?, &[&group, &first, &void])
        .await?;
    for sql in [
        "/* recovery::restore */ DELETE FROM epochs WHERE group_id = $1 AND epoch_seq >= $2",
        "/* recovery::restore */ DELETE FROM tree_nodes WHERE group_id = $1 AND from_seq >= $2",
        "/* recovery::restore */ DELETE FROM tree_hashes WHERE group_id = $1 AND from_seq >= $2",
        "/* recovery::restore */ DELETE FROM welcomes WHERE group_id = $1 AND commit_seq >= $2",
    ] {
        tx.execute(&tx.prepare_cached(sql).await?, &[&group, &first])
            .await?;
    }
    Ok(gone.iter().chain(&back).map(device_key).collect())
}

/// Remembers what a VOID entry took back.
pub async fn insert_void(
    tx: &Transaction<'_>,
    group: &[u8],
    void: u64,
    first: u64,
    last: u64,
) -> Result<(), Error> {
    let sql = "/* recovery::insert_void */ INSERT INTO voids (group_id, void_seq, first_seq, last_seq) VALUES ($1, $2, $3, $4)";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &signed(void), &signed(first), &signed(last)],
    )
    .await?;
    Ok(())
}

/// The VOID entry that took back the epoch that the Commit at `epoch_seq` began.
pub async fn voided_by<C: GenericClient>(
    tx: &C,
    group: &[u8],
    epoch_seq: u64,
) -> Result<Option<u64>, Error> {
    let sql = "/* recovery::voided_by */ SELECT min(v.void_seq) FROM voids v WHERE v.group_id = $1 AND $2 BETWEEN v.first_seq AND v.last_seq \
               AND EXISTS (SELECT 1 FROM log l WHERE l.group_id = $1 AND l.seq = $2 AND l.kind IN (1, 2))";
    let row = tx
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(epoch_seq)],
        )
        .await?;
    Ok(row.get::<_, Option<i64>>(0).map(unsigned))
}

/// Bars the committer of a voided Commit.
pub async fn bar(
    tx: &Transaction<'_>,
    group: &[u8],
    committer: DeviceKey,
    void: u64,
) -> Result<u64, Error> {
    let sql = "/* recovery::bar */ UPDATE members SET barred_seq = $4 WHERE group_id = $1 AND domain_id = $2 AND device_id = $3 AND removed_seq IS NULL";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &committer.domain, &committer.device, &signed(void)],
    )
    .await
}

/// The GroupInfo of a standing epoch, replaced by one of the same epoch; its tree is written by the caller.
pub async fn replace_group_info(
    tx: &Transaction<'_>,
    group: &[u8],
    epoch_seq: u64,
    group_info: &[u8],
    group_state_hash: &[u8],
    tree_width: u32,
) -> Result<u64, Error> {
    let sql = "/* recovery::replace_group_info */ UPDATE epochs SET group_info = $3, group_state_hash = $4, tree_width = $5 \
               WHERE group_id = $1 AND epoch_seq = $2";
    let width = i32::try_from(tree_width).unwrap_or(i32::MAX);
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &group,
            &signed(epoch_seq),
            &group_info,
            &group_state_hash,
            &width,
        ],
    )
    .await
}

/// Whether a bar that began with the VOID entry `void_seq` is over by time.
pub async fn bar_is_over(
    tx: &Transaction<'_>,
    group: &[u8],
    void_seq: u64,
    bar_seconds: u32,
) -> Result<bool, Error> {
    let sql = "/* recovery::bar_is_over */ SELECT accepted_at + $3 * interval '1 second' <= clock_timestamp() FROM log \
               WHERE group_id = $1 AND seq = $2";
    let seconds = f64::from(bar_seconds);
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(void_seq), &seconds],
        )
        .await?;
    // A VOID entry that is past retention is long ago.
    Ok(row.is_none_or(|row| row.get(0)))
}
