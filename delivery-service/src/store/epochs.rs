//! Standing epochs.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Row};

use crate::{
    ordering::group::Committer,
    store::{
        groups::{committer_columns, committer_of},
        place_of, signed, unsigned,
    },
};

/// Settled epochs need no committer any more, and nothing takes them back.
pub async fn forget_committers<C: GenericClient>(
    tx: &C,
    group: &[u8],
    settled_seq: u64,
) -> Result<u64, Error> {
    let sql = "/* epochs::forget_committers */ UPDATE epochs SET committer_domain = NULL, committer_device = NULL, committer_user = NULL, \
               confirm_by = 0, void_at = NULL WHERE group_id = $1 AND epoch_seq <= $2 AND committer_device IS NOT NULL";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&group, &signed(settled_seq)],
    )
    .await
}

/// A standing epoch.
#[derive(Debug, Clone)]
pub struct Epoch {
    /// MLS epoch number.
    pub epoch: u64,
    /// Its name.
    pub epoch_seq: u64,
    /// MLSMessage(GroupInfo).
    pub group_info: Vec<u8>,
    /// SHA-256 that entries of the Commit carry.
    pub group_state_hash: Vec<u8>,
    /// Leaves of its tree.
    pub tree_width: u32,
    /// What its Welcomes share.
    pub encrypted_group_info: Option<Vec<u8>>,
    /// The head's floor when it began; absent where an older program wrote it.
    pub floor_seq: Option<u64>,
    /// Who began it, while it is unsettled.
    pub committer: Option<Committer>,
}

/// Stores an epoch.
pub async fn insert(tx: &Transaction<'_>, group: &[u8], epoch: &Epoch) -> Result<(), Error> {
    let sql = "/* epochs::insert */ INSERT INTO epochs (group_id, epoch, epoch_seq, group_info, group_state_hash, tree_width, \
               encrypted_group_info, floor_seq, committer_domain, committer_device, committer_user, confirm_by) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    let width = i32::try_from(epoch.tree_width).unwrap_or(i32::MAX);
    let (domain, device, user, confirm_by) = committer_columns(epoch.committer.as_ref());
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &group,
            &signed(epoch.epoch),
            &signed(epoch.epoch_seq),
            &epoch.group_info,
            &epoch.group_state_hash,
            &width,
            &epoch.encrypted_group_info,
            &epoch.floor_seq.map(signed),
            &domain,
            &device,
            &user,
            &confirm_by,
        ],
    )
    .await?;
    Ok(())
}

macro_rules! epoch_columns {
    () => {
        "epoch, epoch_seq, group_info, group_state_hash, tree_width, encrypted_group_info, floor_seq, \
         committer_domain, committer_device, committer_user, confirm_by"
    };
}

fn epoch_of(row: &Row) -> Epoch {
    Epoch {
        epoch: unsigned(row.get("epoch")),
        epoch_seq: unsigned(row.get("epoch_seq")),
        group_info: row.get("group_info"),
        group_state_hash: row.get("group_state_hash"),
        tree_width: u32::try_from(row.get::<_, i32>("tree_width")).unwrap_or(0),
        encrypted_group_info: row.get("encrypted_group_info"),
        floor_seq: row.get::<_, Option<i64>>("floor_seq").map(unsigned),
        committer: committer_of(row),
    }
}

/// The epoch named `epoch_seq`.
pub async fn find<C: GenericClient>(
    client: &C,
    group: &[u8],
    epoch_seq: u64,
) -> Result<Option<Epoch>, Error> {
    let sql = concat!(
        "/* epochs::find */ SELECT ",
        epoch_columns!(),
        " FROM epochs WHERE group_id = $1 AND epoch_seq = $2"
    );
    let row = client
        .query_opt(
            &client.prepare_cached(sql).await?,
            &[&group, &signed(epoch_seq)],
        )
        .await?;
    Ok(row.as_ref().map(epoch_of))
}

/// Leaves of the trees of some groups' epochs, each with its place in the question.
pub async fn tree_widths<C: GenericClient>(
    client: &C,
    epochs: &[(&[u8], u64)],
) -> Result<Vec<(usize, u32)>, Error> {
    let sql = "/* epochs::tree_widths */ SELECT q.n, e.tree_width FROM unnest($1::bytea[], $2::bigint[]) WITH ORDINALITY AS q(id, seq, n), \
               LATERAL (SELECT tree_width FROM epochs WHERE group_id = q.id AND epoch_seq = q.seq OFFSET 0) e";
    let (groups, seqs): (Vec<&[u8]>, Vec<i64>) = epochs
        .iter()
        .map(|(group, seq)| (*group, signed(*seq)))
        .unzip();
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&groups, &seqs])
        .await?;
    let widths = rows.iter().map(|row| {
        let width = u32::try_from(row.get::<_, i32>("tree_width")).unwrap_or(0);
        (place_of(row), width)
    });
    Ok(widths
        .filter(|(_, width)| width.is_power_of_two())
        .collect())
}

/// The standing epoch before the one that `seq` began.
pub async fn before(tx: &Transaction<'_>, group: &[u8], seq: u64) -> Result<Option<Epoch>, Error> {
    let sql = concat!(
        "/* epochs::before */ SELECT ",
        epoch_columns!(),
        " FROM epochs WHERE group_id = $1 AND epoch_seq < $2 ORDER BY epoch_seq DESC LIMIT 1"
    );
    let row = tx
        .query_opt(&tx.prepare_cached(sql).await?, &[&group, &signed(seq)])
        .await?;
    Ok(row.as_ref().map(epoch_of))
}

/// The name of the standing epoch with this number.
pub async fn seq_of<C: GenericClient>(
    client: &C,
    group: &[u8],
    epoch: u64,
) -> Result<Option<u64>, Error> {
    let sql =
        "/* epochs::seq_of */ SELECT epoch_seq FROM epochs WHERE group_id = $1 AND epoch = $2";
    let row = client
        .query_opt(
            &client.prepare_cached(sql).await?,
            &[&group, &signed(epoch)],
        )
        .await?;
    Ok(row.map(|row| unsigned(row.get(0))))
}
