//! Membership intervals, and each device's index of its groups.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Row, Statement};
use uuid::Uuid;

use crate::{
    ordering::{
        facts::Pending,
        group::{DeviceKey, Membership},
    },
    store::{columns, device_key, place_of, signed, unsigned},
};

/// A closed or open interval in which a device may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// The joining Commit.
    pub joined_seq: u64,
    /// The removing Commit, readable too; absent while the device is a member.
    pub removed_seq: Option<u64>,
    /// The joining Commit was taken back.
    pub voided: bool,
}

/// A row of the roster.
#[derive(Debug, Clone)]
pub struct Member {
    /// The device.
    pub key: DeviceKey,
    /// Its user.
    pub user: Uuid,
    /// The joining Commit.
    pub joined_seq: u64,
    /// Leaving or revoked.
    pub pending: bool,
}

/// The open memberships of these devices, each looked up by itself: a join would often be made by reading the whole group.
pub async fn current<C: GenericClient>(
    client: &C,
    group: &[u8],
    devices: &[DeviceKey],
) -> Result<Vec<(DeviceKey, Membership)>, Error> {
    let sql = "/* roster::current */ SELECT d.domain_id, d.device_id, m.user_id, m.joined_seq, m.barred_seq \
               FROM unnest($2::smallint[], $3::uuid[]) AS d(domain_id, device_id) CROSS JOIN LATERAL \
               (SELECT user_id, joined_seq, barred_seq FROM members WHERE group_id = $1 AND domain_id = d.domain_id \
                 AND device_id = d.device_id AND removed_seq IS NULL OFFSET 0) m";
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let (domains, ids) = columns(devices);
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&group, &domains, &ids],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let key = device_key(row);
            let membership = Membership {
                user: row.get(2),
                joined_seq: unsigned(row.get(3)),
                barred_seq: row.get::<_, Option<i64>>(4).map(unsigned),
            };
            (key, membership)
        })
        .collect())
}

/// The membership of a device in the epoch that began at `seq`, over or not: what an unsettled Commit took away still has a voice.
pub async fn at(
    tx: &Transaction<'_>,
    group: &[u8],
    device: DeviceKey,
    seq: u64,
) -> Result<Option<Membership>, Error> {
    let sql = "/* roster::at */ SELECT user_id, joined_seq, barred_seq FROM members WHERE group_id = $1 AND domain_id = $2 AND device_id = $3 \
               AND joined_seq <= $4 AND (removed_seq IS NULL OR removed_seq > $4) AND NOT voided ORDER BY joined_seq DESC LIMIT 1";
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&group, &device.domain, &device.device, &signed(seq)],
        )
        .await?;
    Ok(row.map(|row| Membership {
        user: row.get(0),
        joined_seq: unsigned(row.get(1)),
        barred_seq: row.get::<_, Option<i64>>(2).map(unsigned),
    }))
}

/// What a device may read of a group.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// All its intervals, oldest first.
    pub intervals: Vec<Interval>,
    /// It was revoked: nothing, in truth.
    pub revoked: bool,
}

/// Intervals and revocation, in one statement. Read after the head, it bounds that head: what was accepted after a revocation is beyond it.
pub async fn reading<C: GenericClient>(
    client: &C,
    group: &[u8],
    device: DeviceKey,
) -> Result<Reading, Error> {
    let readings = readings(client, &[group], device).await?;
    Ok(readings.into_iter().next().unwrap_or_default())
}

/// [`reading`] of several groups, in their order; one that the device was never in has no intervals.
pub async fn readings<C: GenericClient>(
    client: &C,
    groups: &[&[u8]],
    device: DeviceKey,
) -> Result<Vec<Reading>, Error> {
    let sql = "/* roster::readings */ SELECT q.n, m.joined_seq, m.removed_seq, m.voided, \
               EXISTS (SELECT 1 FROM devices d WHERE d.domain_id = $2 AND d.device_id = $3 AND d.revoked) \
               FROM unnest($1::bytea[]) WITH ORDINALITY AS q(group_id, n) CROSS JOIN LATERAL \
               (SELECT joined_seq, removed_seq, voided FROM members WHERE group_id = q.group_id AND domain_id = $2 AND device_id = $3 OFFSET 0) m \
               ORDER BY q.n, m.joined_seq";
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&groups, &device.domain, &device.device],
        )
        .await?;
    let mut readings = vec![Reading::default(); groups.len()];
    for row in &rows {
        if let Some(reading) = readings.get_mut(place_of(row)) {
            reading.revoked = row.get(4);
            reading.intervals.push(Interval {
                joined_seq: unsigned(row.get(1)),
                removed_seq: row.get::<_, Option<i64>>(2).map(unsigned),
                voided: row.get(3),
            });
        }
    }
    Ok(readings)
}

/// Whose memberships of several groups ended after a seq, each with the place of its group in the question.
pub async fn left_after<C: GenericClient>(
    client: &C,
    groups: &[(&[u8], u64)],
) -> Result<Vec<(usize, DeviceKey)>, Error> {
    let sql = "/* roster::left_after */ SELECT m.domain_id, m.device_id, q.n \
               FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS q(group_id, after, n) \
               CROSS JOIN LATERAL (SELECT domain_id, device_id FROM members WHERE group_id = q.group_id AND removed_seq > q.after OFFSET 0) m";
    let (ids, seqs): (Vec<&[u8]>, Vec<i64>) =
        groups.iter().map(|(id, seq)| (*id, signed(*seq))).unzip();
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&ids, &seqs])
        .await?;
    let left = rows.iter().map(|row| (place_of(row), device_key(row)));
    Ok(left.collect())
}

/// Looks up open memberships of several groups: prepared, so that it can follow a lock in the same round trip.
#[derive(Debug)]
pub struct Memberships(Statement);

impl Memberships {
    /// Gets the statement ready.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        let sql = "/* roster::memberships */ SELECT q.n, m.user_id, m.joined_seq, m.barred_seq, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
                   FROM unnest($1::bytea[], $2::smallint[], $3::uuid[]) WITH ORDINALITY AS q(group_id, domain_id, device_id, n) \
                   LEFT JOIN LATERAL (SELECT * FROM members m WHERE m.group_id = q.group_id AND m.device_id = q.device_id \
                                      AND m.domain_id = q.domain_id AND m.removed_seq IS NULL OFFSET 0) m ON true";
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// For each group and device the membership, in the same order, and the database's time in Unix microseconds (0 if nothing was asked).
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        queries: &[(&[u8], DeviceKey)],
    ) -> Result<(Vec<Option<Membership>>, i64), Error> {
        let groups: Vec<&[u8]> = queries.iter().map(|(group, _)| *group).collect();
        let devices: Vec<DeviceKey> = queries.iter().map(|(_, device)| *device).collect();
        let (domains, ids) = columns(&devices);
        let rows = client.query(&self.0, &[&groups, &domains, &ids]).await?;
        let now = rows.iter().map(|row| row.get(4)).max().unwrap_or(0);
        let mut memberships = vec![None; queries.len()];
        for row in &rows {
            if let Some(place) = memberships.get_mut(place_of(row)) {
                *place = membership_of(row);
            }
        }
        Ok((memberships, now))
    }
}

fn membership_of(row: &Row) -> Option<Membership> {
    let user: Option<Uuid> = row.get("user_id");
    Some(Membership {
        user: user?,
        joined_seq: unsigned(row.get("joined_seq")),
        barred_seq: row.get::<_, Option<i64>>("barred_seq").map(unsigned),
    })
}

/// The roster as of a seq, in the order of the ids.
pub async fn as_of<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Vec<Member>, Error> {
    let sql = "/* roster::as_of */ SELECT domain_id, device_id, user_id, joined_seq, pending FROM members \
               WHERE group_id = $1 AND joined_seq <= $2 AND (removed_seq IS NULL OR removed_seq > $2) ORDER BY domain_id, device_id";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&group, &signed(seq)])
        .await?;
    Ok(rows
        .iter()
        .map(|row| Member {
            key: device_key(row),
            user: row.get(2),
            joined_seq: unsigned(row.get(3)),
            pending: row.get::<_, i16>(4) > 0,
        })
        .collect())
}

/// Which of these devices are members that nobody is to remove, with their users.
pub async fn unmarked<C: GenericClient>(
    client: &C,
    group: &[u8],
    devices: &[DeviceKey],
) -> Result<Vec<(DeviceKey, Uuid)>, Error> {
    let sql = "/* roster::unmarked */ SELECT m.* FROM unnest($2::smallint[], $3::uuid[]) AS q(domain_id, device_id) CROSS JOIN LATERAL \
               (SELECT domain_id, device_id, user_id FROM members WHERE group_id = $1 AND domain_id = q.domain_id AND device_id = q.device_id \
                AND removed_seq IS NULL AND pending = 0 OFFSET 0) m";
    let (domains, ids) = columns(devices);
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&group, &domains, &ids],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let key = device_key(row);
            (key, row.get(2))
        })
        .collect())
}

/// Members that are to be removed, and why.
pub async fn pending(
    tx: &Transaction<'_>,
    group: &[u8],
) -> Result<Vec<(DeviceKey, Pending)>, Error> {
    let sql = "/* roster::pending */ SELECT domain_id, device_id, pending = 2 FROM members WHERE group_id = $1 AND removed_seq IS NULL AND pending > 0";
    let rows = tx.query(&tx.prepare_cached(sql).await?, &[&group]).await?;
    let pending = rows.iter().map(|row| {
        let why = if row.get(2) {
            Pending::Revoked
        } else {
            Pending::Leaving
        };
        (device_key(row), why)
    });
    Ok(pending.collect())
}

/// Where the leave request of a membership that is leaving already stands, with its chain value.
pub async fn leaving(
    tx: &Transaction<'_>,
    group: &[u8],
    device: DeviceKey,
) -> Result<Option<(u64, Vec<u8>)>, Error> {
    let sql = "/* roster::leaving */ SELECT l.seq, l.chain FROM members m \
               JOIN log l ON l.group_id = m.group_id AND l.seq > m.joined_seq AND l.kind = 6 AND l.payload = m.pending_evidence \
               WHERE m.group_id = $1 AND m.domain_id = $2 AND m.device_id = $3 AND m.removed_seq IS NULL AND m.pending = 1 \
               ORDER BY l.seq LIMIT 1";
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&group, &device.domain, &device.device],
        )
        .await?;
    Ok(row.map(|row| (unsigned(row.get(0)), row.get(1))))
}

/// Marks a member as leaving, with its signed request. A revocation, which weighs more, stays.
pub async fn mark_leaving(
    tx: &Transaction<'_>,
    group: &[u8],
    device: DeviceKey,
    evidence: &[u8],
) -> Result<u64, Error> {
    let sql = "/* roster::mark_leaving */ UPDATE members SET pending = 1, pending_evidence = $4 \
               WHERE group_id = $1 AND domain_id = $2 AND device_id = $3 AND removed_seq IS NULL AND pending = 0";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &device.domain, &device.device, &evidence],
    )
    .await
}

/// Besides the committer and those who leave: is there another user, is there another device? A device that is barred confirms nothing: it waits for this
/// very epoch to settle.
pub async fn others(
    tx: &Transaction<'_>,
    group: &[u8],
    committer: DeviceKey,
    user: Uuid,
    leaving: &[DeviceKey],
    settled_seq: u64,
) -> Result<(bool, bool), Error> {
    let sql = "/* roster::others */ WITH stay AS (SELECT m.user_id FROM members m WHERE m.group_id = $1 AND m.removed_seq IS NULL \
               AND NOT (m.domain_id = $2 AND m.device_id = $3) AND coalesce(m.barred_seq, 0) <= $7 AND NOT EXISTS (SELECT 1 FROM unnest($5::smallint[], $6::uuid[]) \
               AS r(domain_id, device_id) WHERE r.domain_id = m.domain_id AND r.device_id = m.device_id)) \
               SELECT EXISTS (SELECT 1 FROM stay WHERE user_id <> $4), EXISTS (SELECT 1 FROM stay)";
    let (domains, ids) = columns(leaving);
    let row = tx
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[
                &group,
                &committer.domain,
                &committer.device,
                &user,
                &domains,
                &ids,
                &signed(settled_seq),
            ],
        )
        .await?;
    Ok((row.get(0), row.get(1)))
}

/// Closes the open intervals of these devices at `seq`; returns how many there were.
pub async fn close(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    devices: &[DeviceKey],
) -> Result<u64, Error> {
    let sql = "/* roster::close */ UPDATE members m SET removed_seq = $2, pending = 0 \
               FROM unnest($3::smallint[], $4::uuid[]) AS d(domain_id, device_id) \
               WHERE m.group_id = $1 AND m.domain_id = d.domain_id AND m.device_id = d.device_id AND m.device_id = ANY($4) AND m.removed_seq IS NULL";
    if devices.is_empty() {
        return Ok(0);
    }
    let (domains, ids) = columns(devices);
    let closed = tx
        .execute(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(seq), &domains, &ids],
        )
        .await?;
    let sql = "/* roster::close */ INSERT INTO device_groups (domain_id, device_id, group_id, seq, member) \
               SELECT d.domain_id, d.device_id, $1, $2, false FROM unnest($3::smallint[], $4::uuid[]) AS d(domain_id, device_id) \
               ON CONFLICT (device_id, domain_id, group_id) DO UPDATE SET seq = EXCLUDED.seq, member = false";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &signed(seq), &domains, &ids],
    )
    .await?;
    Ok(closed)
}

/// A device that becomes a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joiner {
    /// The device.
    pub key: DeviceKey,
    /// Its user.
    pub user: Uuid,
    /// Where its leaf is, as its certificate in the tree says.
    pub leaf_index: Option<u32>,
    /// The key of that leaf.
    pub signature_key: Option<Vec<u8>>,
}

/// Where the leaf of a device is, or was last.
pub async fn leaf_index<C: GenericClient>(
    client: &C,
    group: &[u8],
    device: DeviceKey,
) -> Result<Option<u32>, Error> {
    let sql = "/* roster::leaf_index */ SELECT leaf_index FROM members WHERE group_id = $1 AND domain_id = $2 AND device_id = $3 \
               ORDER BY joined_seq DESC LIMIT 1";
    let row = client
        .query_opt(
            &client.prepare_cached(sql).await?,
            &[&group, &device.domain, &device.device],
        )
        .await?;
    let index = row.and_then(|row| row.get::<_, Option<i32>>(0));
    Ok(index.and_then(|index| u32::try_from(index).ok()))
}

/// Where the leaf of an open membership is, as far as that was kept; `None` for a device that is not in.
pub async fn open_leaf<C: GenericClient>(
    client: &C,
    group: &[u8],
    device: DeviceKey,
) -> Result<Option<Option<u32>>, Error> {
    let sql = "/* roster::open_leaf */ SELECT leaf_index FROM members \
               WHERE group_id = $1 AND domain_id = $2 AND device_id = $3 AND removed_seq IS NULL";
    let row = client
        .query_opt(
            &client.prepare_cached(sql).await?,
            &[&group, &device.domain, &device.device],
        )
        .await?;
    let index = |row: tokio_postgres::Row| row.get::<_, Option<i32>>(0);
    Ok(row.map(|row| index(row).and_then(|index| u32::try_from(index).ok())))
}

/// The key that the leaf of a device was let in with, of its membership at `seq`, where it was kept.
pub async fn signature_key<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    device: DeviceKey,
) -> Result<Option<Vec<u8>>, Error> {
    let sql = "/* roster::signature_key */ SELECT signature_key FROM members \
               WHERE group_id = $1 AND domain_id = $2 AND device_id = $3 AND joined_seq <= $4 ORDER BY joined_seq DESC LIMIT 1";
    let row = client
        .query_opt(
            &client.prepare_cached(sql).await?,
            &[&group, &device.domain, &device.device, &signed(seq)],
        )
        .await?;
    Ok(row.and_then(|row| row.get(0)))
}

/// The members, each with the key that its leaf was let in with, where it was kept.
pub async fn keys(
    tx: &Transaction<'_>,
    group: &[u8],
) -> Result<Vec<(DeviceKey, Option<Vec<u8>>)>, Error> {
    let sql = "/* roster::keys */ SELECT domain_id, device_id, signature_key FROM members WHERE group_id = $1 AND removed_seq IS NULL";
    let rows = tx.query(&tx.prepare_cached(sql).await?, &[&group]).await?;
    Ok(rows
        .iter()
        .map(|row| (device_key(row), row.get(2)))
        .collect())
}

/// The leaves of the members, as far as they are known, each with its device and whether that one is in good standing.
pub async fn leaves<C: GenericClient>(
    client: &C,
    group: &[u8],
) -> Result<Vec<(u32, DeviceKey, bool)>, Error> {
    let sql = "/* roster::leaves */ SELECT domain_id, device_id, leaf_index, pending = 0 FROM members \
               WHERE group_id = $1 AND removed_seq IS NULL AND leaf_index IS NOT NULL";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&group])
        .await?;
    let leaves = rows.iter().map(|row| {
        let index = u32::try_from(row.get::<_, i32>(2)).unwrap_or(0);
        (index, device_key(row), row.get(3))
    });
    Ok(leaves.collect())
}

/// Opens an interval for each of these devices at `seq`.
pub async fn open(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    devices: &[Joiner],
) -> Result<(), Error> {
    let keys: Vec<DeviceKey> = devices.iter().map(|joiner| joiner.key).collect();
    let users: Vec<Uuid> = devices.iter().map(|joiner| joiner.user).collect();
    let leaves: Vec<Option<i32>> = devices
        .iter()
        .map(|joiner| joiner.leaf_index.and_then(|leaf| i32::try_from(leaf).ok()))
        .collect();
    let signature_keys = devices.iter().map(|joiner| joiner.signature_key.as_deref());
    let signature_keys: Vec<Option<&[u8]>> = signature_keys.collect();
    let (domains, ids) = columns(&keys);
    let sql = "/* roster::open */ INSERT INTO members (group_id, domain_id, device_id, user_id, joined_seq, leaf_index, signature_key) \
               SELECT $1, d.domain_id, d.device_id, d.user_id, $2, d.leaf_index, d.signature_key \
               FROM unnest($3::smallint[], $4::uuid[], $5::uuid[], $6::int[], $7::bytea[]) \
               AS d(domain_id, device_id, user_id, leaf_index, signature_key)";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &group,
            &signed(seq),
            &domains,
            &ids,
            &users,
            &leaves,
            &signature_keys,
        ],
    )
    .await?;
    let sql = "/* roster::open */ INSERT INTO device_groups (domain_id, device_id, group_id, seq, member, welcome_seq) \
               SELECT d.domain_id, d.device_id, $1, $2, true, $2 FROM unnest($3::smallint[], $4::uuid[]) AS d(domain_id, device_id) \
               ON CONFLICT (device_id, domain_id, group_id) DO UPDATE SET seq = EXCLUDED.seq, member = true, welcome_seq = EXCLUDED.welcome_seq";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &signed(seq), &domains, &ids],
    )
    .await?;
    Ok(())
}

/// The groups that a device is or was in.
pub async fn groups_of<C: GenericClient>(
    client: &C,
    device: DeviceKey,
) -> Result<Vec<Vec<u8>>, Error> {
    let sql = "/* roster::groups_of */ SELECT group_id FROM device_groups WHERE domain_id = $1 AND device_id = $2 ORDER BY group_id";
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&device.domain, &device.device],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a poll reads of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevicePulse {
    /// Grows whenever its list of groups changes.
    pub version: u64,
    /// Never undone.
    pub revoked: bool,
    /// Its user is suspended, or its certificate expired.
    pub suspended: bool,
}

/// The pulses of devices, each with its user.
pub async fn pulses<C: GenericClient>(
    client: &C,
    devices: &[(DeviceKey, Uuid)],
) -> Result<Vec<(DeviceKey, DevicePulse)>, Error> {
    let sql = "/* roster::pulses */ SELECT d.domain_id, d.device_id, \
               coalesce((SELECT sum(g.seq + 1) FROM device_groups g WHERE g.device_id = d.device_id AND g.domain_id = d.domain_id), 0)::bigint, \
               coalesce((SELECT v.revoked FROM devices v WHERE v.device_id = d.device_id AND v.domain_id = d.domain_id), false), \
               EXISTS (SELECT 1 FROM suspended s WHERE s.domain_id = d.domain_id AND s.subject_id IN (d.device_id, d.user_id)) \
               FROM unnest($1::smallint[], $2::uuid[], $3::uuid[]) AS d(domain_id, device_id, user_id)";
    let (keys, users): (Vec<DeviceKey>, Vec<Uuid>) = devices.iter().copied().unzip();
    let (domains, ids) = columns(&keys);
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&domains, &ids, &users],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let key = device_key(row);
            let pulse = DevicePulse {
                version: unsigned(row.get(2)),
                revoked: row.get(3),
                suspended: row.get(4),
            };
            (key, pulse)
        })
        .collect())
}
