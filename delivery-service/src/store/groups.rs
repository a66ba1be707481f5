//! Groups and their heads.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Row, Statement};
use uuid::Uuid;

use crate::{
    ordering::group::{Committer, ConfirmBy, DeviceKey, ExternalJoin, Head, Stage},
    store::{hash32, place_of, signed, unsigned},
};

fn stage_code(stage: Stage) -> i16 {
    match stage {
        Stage::Deleted => 0,
        Stage::Open => 1,
        Stage::Replaced => 2,
        Stage::Empty => 3,
    }
}

fn stage_of(code: i16) -> Stage {
    match code {
        1 => Stage::Open,
        2 => Stage::Replaced,
        3 => Stage::Empty,
        _ => Stage::Deleted,
    }
}

/// What `CreateGroup` made.
#[derive(Debug, Clone)]
pub struct Created {
    /// The group's cipher suite.
    pub suite: i32,
    /// Who made it.
    pub creator: DeviceKey,
    /// SHA-256 over the request.
    pub create_hash: [u8; 32],
}

/// The committer in columns of these names, in a head's row and in an epoch's.
pub(super) fn committer_of(row: &Row) -> Option<Committer> {
    let device: Option<Uuid> = row.get("committer_device");
    let confirm_by = match row.get::<_, i16>("confirm_by") {
        1 => ConfirmBy::OtherUser,
        2 => ConfirmBy::OtherDevice,
        _ => ConfirmBy::Nobody,
    };
    device.map(|device| Committer {
        key: DeviceKey {
            domain: row.get("committer_domain"),
            device,
        },
        user: row.get("committer_user"),
        confirm_by,
    })
}

fn head_of(row: &Row) -> Head {
    Head {
        stage: stage_of(row.get("state")),
        seq: unsigned(row.get("head_seq")),
        epoch: unsigned(row.get("epoch")),
        epoch_seq: unsigned(row.get("epoch_seq")),
        floor_seq: unsigned(row.get("floor_seq")),
        settled_seq: unsigned(row.get("settled_seq")),
        pending_removals: u32::try_from(row.get::<_, i32>("pending_removals")).unwrap_or(0),
        committer: committer_of(row),
        past_epochs: u64::try_from(row.get::<_, i32>("past_epochs")).unwrap_or(0),
        external_join: match row.get::<_, i16>("external_join") {
            1 => ExternalJoin::Resync,
            2 => ExternalJoin::SameUser,
            _ => ExternalJoin::None,
        },
        chain: hash32(row.get("chain")),
        last_at: row.get("last_at_micros"),
    }
}

fn external_join_code(policy: ExternalJoin) -> i16 {
    match policy {
        ExternalJoin::None => 0,
        ExternalJoin::Resync => 1,
        ExternalJoin::SameUser => 2,
    }
}

pub(super) fn committer_columns(
    committer: Option<&Committer>,
) -> (Option<i16>, Option<Uuid>, Option<Uuid>, i16) {
    match committer {
        None => (None, None, None, 0),
        Some(c) => {
            let confirm_by = match c.confirm_by {
                ConfirmBy::Nobody => 0,
                ConfirmBy::OtherUser => 1,
                ConfirmBy::OtherDevice => 2,
            };
            (
                Some(c.key.domain),
                Some(c.key.device),
                Some(c.user),
                confirm_by,
            )
        }
    }
}

macro_rules! head_columns {
    () => {
        "state, head_seq, epoch, epoch_seq, floor_seq, settled_seq, pending_removals, committer_domain, committer_device, committer_user, \
         confirm_by, past_epochs, external_join, chain, (extract(epoch FROM last_at) * 1000000)::bigint AS last_at_micros"
    };
}

/// Locks the head row, alone: what is read with it in one statement would be older than the lock.
pub async fn lock(tx: &Transaction<'_>, group: &[u8]) -> Result<Option<Head>, Error> {
    let sql = concat!(
        "/* groups::lock */ SELECT ",
        head_columns!(),
        " FROM group_heads WHERE group_id = $1 FOR NO KEY UPDATE"
    );
    Ok(tx
        .query_opt(&tx.prepare_cached(sql).await?, &[&group])
        .await?
        .as_ref()
        .map(head_of))
}

/// Locks the heads of several groups: prepared, so that what is read after it can follow in the same round trip.
#[derive(Debug)]
pub struct LockMany(Statement);

impl LockMany {
    /// Gets the statement ready; it waits for heads that somebody else holds, or passes them over.
    pub async fn prepare<C: GenericClient>(client: &C, pass_over: bool) -> Result<Self, Error> {
        macro_rules! lock {
            ($end:literal) => {
                concat!(
                    "/* groups::lock_many */ SELECT ",
                    head_columns!(),
                    ", group_id FROM unnest($1::bytea[]) AS q(id), LATERAL (SELECT * FROM group_heads WHERE group_id = q.id FOR NO KEY UPDATE",
                    $end,
                    ") h"
                )
            };
        }
        let sql = if pass_over {
            lock!(" SKIP LOCKED")
        } else {
            lock!("")
        };
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// The heads that are locked now. They are locked in the order in which they are named: let that be the order of their ids.
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        groups: &[&[u8]],
    ) -> Result<Vec<(Vec<u8>, Head)>, Error> {
        let rows = client.query(&self.0, &[&groups]).await?;
        let heads = rows.iter().map(|row| (row.get("group_id"), head_of(row)));
        Ok(heads.collect())
    }
}

/// Reads the head without a lock.
pub async fn head<C: GenericClient>(client: &C, group: &[u8]) -> Result<Option<Head>, Error> {
    let sql = concat!(
        "/* groups::head */ SELECT ",
        head_columns!(),
        " FROM group_heads WHERE group_id = $1"
    );
    Ok(client
        .query_opt(&client.prepare_cached(sql).await?, &[&group])
        .await?
        .as_ref()
        .map(head_of))
}

/// A head and the last Commit before it: memberships change by Commits only.
#[derive(Debug, Clone)]
pub struct Place {
    /// The head.
    pub head: Head,
    /// 0 before the first Commit.
    pub roster_seq: u64,
}

/// Reads the heads of several groups without a lock: prepared, so that what must not be older can follow in the same round trip.
#[derive(Debug)]
pub struct Places(Statement);

impl Places {
    /// Gets the statement ready.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        let sql = concat!(
            "/* groups::places */ SELECT q.n, h.* FROM unnest($1::bytea[]) WITH ORDINALITY AS q(id, n), LATERAL (SELECT ",
            head_columns!(),
            ", roster_seq FROM group_heads WHERE group_id = q.id OFFSET 0) h"
        );
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// Those that there are, each with the place of its group in the question.
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        groups: &[&[u8]],
    ) -> Result<Vec<(usize, Place)>, Error> {
        let rows = client.query(&self.0, &[&groups]).await?;
        let places = rows.iter().map(|row| {
            let place = Place {
                head: head_of(row),
                roster_seq: unsigned(row.get("roster_seq")),
            };
            (place_of(row), place)
        });
        Ok(places.collect())
    }
}

/// The same by itself.
pub async fn places<C: GenericClient>(
    client: &C,
    groups: &[&[u8]],
) -> Result<Vec<(usize, Place)>, Error> {
    Places::prepare(client).await?.run(client, groups).await
}

/// What a poll reads of a group's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulse {
    /// Last seq given.
    pub head_seq: u64,
    /// The current epoch's name.
    pub epoch_seq: u64,
    /// The current epoch, where it is unsettled.
    pub unsettled: Option<u64>,
    /// Devices that were revoked or asked to leave are still in the roster.
    pub removals_wait: bool,
}

/// The pulses of several groups.
pub async fn pulses<C: GenericClient>(
    client: &C,
    groups: &[&[u8]],
) -> Result<Vec<(Vec<u8>, Pulse)>, Error> {
    let sql = "/* groups::pulses */ SELECT h.group_id, h.head_seq, h.epoch_seq, CASE WHEN h.epoch_seq > h.settled_seq THEN h.epoch_seq END, \
               EXISTS (SELECT 1 FROM members WHERE group_id = q.id AND removed_seq IS NULL AND pending > 0) \
               FROM unnest($1::bytea[]) AS q(id) CROSS JOIN LATERAL \
               (SELECT group_id, head_seq, epoch_seq, settled_seq FROM group_heads WHERE group_id = q.id) h";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&groups])
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let pulse = Pulse {
                head_seq: unsigned(row.get(1)),
                epoch_seq: unsigned(row.get(2)),
                unsettled: row.get::<_, Option<i64>>(3).map(unsigned),
                removals_wait: row.get(4),
            };
            (row.get(0), pulse)
        })
        .collect())
}

/// Claims the id for ever; false if it was ever used.
pub async fn insert(tx: &Transaction<'_>, group: &[u8], created: &Created) -> Result<bool, Error> {
    let sql = "/* groups::insert */ INSERT INTO groups (group_id, suite, creator_domain, creator_device, create_hash, created_at) \
               VALUES ($1, $2, $3, $4, $5, now()) ON CONFLICT (group_id) DO NOTHING";
    let creator = created.creator;
    let hash = created.create_hash.as_slice();
    let rows = tx
        .execute(
            &tx.prepare_cached(sql).await?,
            &[
                &group,
                &created.suite,
                &creator.domain,
                &creator.device,
                &hash,
            ],
        )
        .await?;
    Ok(rows == 1)
}

/// How a group was made.
pub async fn created<C: GenericClient>(client: &C, group: &[u8]) -> Result<Option<Created>, Error> {
    let sql = "/* groups::created */ SELECT suite, creator_domain, creator_device, create_hash FROM groups WHERE group_id = $1";
    Ok(client
        .query_opt(&client.prepare_cached(sql).await?, &[&group])
        .await?
        .map(|row| Created {
            suite: row.get(0),
            creator: DeviceKey {
                domain: row.get(1),
                device: row.get(2),
            },
            create_hash: hash32(row.get(3)),
        }))
}

/// The first head row; false if there is one.
pub async fn insert_head(tx: &Transaction<'_>, group: &[u8], head: &Head) -> Result<(), Error> {
    let sql = "/* groups::insert_head */ INSERT INTO group_heads (group_id, state, head_seq, epoch, epoch_seq, floor_seq, settled_seq, \
               roster_seq, past_epochs, external_join, chain, last_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $3, $8, $9, $10, now())";
    let past_epochs = i32::try_from(head.past_epochs).unwrap_or(i32::MAX);
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &group,
            &stage_code(head.stage),
            &signed(head.seq),
            &signed(head.epoch),
            &signed(head.epoch_seq),
            &signed(head.floor_seq),
            &signed(head.settled_seq),
            &past_epochs,
            &external_join_code(head.external_join),
            &head.chain.as_slice(),
        ],
    )
    .await?;
    Ok(())
}

/// Writes the head after an entry; the row is locked by this transaction. Returns the rows changed: 1, or the lock was not held.
pub async fn advance(
    tx: &Transaction<'_>,
    group: &[u8],
    before: &Head,
    head: &Head,
) -> Result<u64, Error> {
    let sql = "/* groups::advance */ UPDATE group_heads SET head_seq = $3, epoch = $4, epoch_seq = $5, floor_seq = $6, settled_seq = $7, \
               roster_seq = CASE WHEN $5 <> epoch_seq THEN $3 ELSE roster_seq END, pending_removals = $8, committer_domain = $9, \
               committer_device = $10, committer_user = $11, confirm_by = $12, past_epochs = $13, external_join = $14, chain = $15, \
               last_at = 'epoch'::timestamptz + $16 * interval '1 microsecond', state = $17 WHERE group_id = $1 AND head_seq = $2";
    let (domain, device, user, confirm_by) = committer_columns(head.committer.as_ref());
    let pending = i32::try_from(head.pending_removals).unwrap_or(i32::MAX);
    let past_epochs = i32::try_from(head.past_epochs).unwrap_or(i32::MAX);
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &group,
            &signed(before.seq),
            &signed(head.seq),
            &signed(head.epoch),
            &signed(head.epoch_seq),
            &signed(head.floor_seq),
            &signed(head.settled_seq),
            &pending,
            &domain,
            &device,
            &user,
            &confirm_by,
            &past_epochs,
            &external_join_code(head.external_join),
            &head.chain.as_slice(),
            &(head.last_at as f64),
            &stage_code(head.stage),
        ],
    )
    .await
}

/// A head, and the same after messages.
#[derive(Debug)]
pub struct HeadMove<'a> {
    /// Whose.
    pub group: &'a [u8],
    /// As it was locked.
    pub before: &'a Head,
    /// As it is to be: messages move `seq`, `chain` and `last_at`, and may settle the epoch.
    pub after: &'a Head,
}

/// The database's time in Unix microseconds.
pub async fn now<C: GenericClient>(client: &C) -> Result<i64, Error> {
    let sql = "/* groups::now */ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    Ok(client
        .query_one(&client.prepare_cached(sql).await?, &[])
        .await?
        .get(0))
}

/// The database's incarnation: renewed when it is restored.
pub async fn incarnation<C: GenericClient>(client: &C) -> Result<Uuid, Error> {
    let sql = "/* groups::incarnation */ SELECT incarnation FROM service_state";
    Ok(client
        .query_one(&client.prepare_cached(sql).await?, &[])
        .await?
        .get(0))
}
