//! Public trees as opaque nodes, each kept by the seq of the Commit that wrote it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use chancery_proto::tree::{Hashes, Nodes, Tree};
use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Row};

use crate::store::{signed, unsigned};

/// A node that a Commit wrote: its index, and its bytes or blank.
pub type Node = (u32, Option<Vec<u8>>);

/// Writes the nodes that changed at `seq`.
pub async fn insert(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    nodes: &[Node],
) -> Result<(), Error> {
    let sql = "/* tree::insert */ INSERT INTO tree_nodes (group_id, node_index, from_seq, node) \
               SELECT $1, n.node_index, $2, n.node FROM unnest($3::int[], $4::bytea[]) AS n(node_index, node)";
    for part in nodes.chunks(1_000) {
        let indices: Vec<i32> = part.iter().map(|(index, _)| stored_index(*index)).collect();
        let bodies: Vec<Option<&[u8]>> = part.iter().map(|(_, node)| node.as_deref()).collect();
        tx.execute(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(seq), &indices, &bodies],
        )
        .await?;
    }
    Ok(())
}

/// Writes hashes of subtrees that changed at `seq`.
pub async fn insert_hashes(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    hashes: &Hashes,
) -> Result<(), Error> {
    let sql = "/* tree::insert_hashes */ INSERT INTO tree_hashes (group_id, node_index, from_seq, hash) \
               SELECT $1, h.node_index, $2, h.hash FROM unnest($3::int[], $4::bytea[]) AS h(node_index, hash)";
    let rows: Vec<(i32, &[u8])> = hashes
        .iter()
        .map(|(index, hash)| (stored_index(*index), hash.as_slice()))
        .collect();
    for part in rows.chunks(10_000) {
        let (indices, hashes): (Vec<i32>, Vec<&[u8]>) = part.iter().copied().unzip();
        tx.execute(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(seq), &indices, &hashes],
        )
        .await?;
    }
    Ok(())
}

fn stored_index(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn index_of(row: &Row) -> u32 {
    u32::try_from(row.get::<_, i32>(0)).unwrap_or(0)
}

/// Which of these nodes are not blank in the current epoch.
pub async fn filled<C: GenericClient>(
    client: &C,
    group: &[u8],
    indices: &[u32],
) -> Result<BTreeSet<u32>, Error> {
    let sql = "/* tree::filled */ SELECT q.i FROM unnest($2::int[]) AS q(i) CROSS JOIN LATERAL \
               (SELECT node IS NOT NULL AS filled FROM tree_nodes WHERE group_id = $1 AND node_index = q.i ORDER BY from_seq DESC LIMIT 1) t \
               WHERE t.filled";
    let indices: Vec<i32> = indices.iter().map(|index| stored_index(*index)).collect();
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&group, &indices])
        .await?;
    Ok(rows.iter().map(index_of).collect())
}

/// Some nodes of the epoch named `seq`; those that are not named are blank.
pub async fn nodes_at<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    indices: &[u32],
) -> Result<Nodes, Error> {
    let sql = "/* tree::nodes_at */ SELECT q.i, t.node FROM unnest($3::int[]) AS q(i) CROSS JOIN LATERAL \
               (SELECT node FROM tree_nodes WHERE group_id = $1 AND node_index = q.i AND from_seq <= $2 ORDER BY from_seq DESC LIMIT 1) t \
               WHERE t.node IS NOT NULL";
    some_at(client, sql, group, seq, indices).await
}

/// How many of the leaves before the leaf index `end` are filled in the epoch named `seq`.
pub async fn filled_leaves<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    end: u32,
) -> Result<u32, Error> {
    let sql = "/* tree::filled_leaves */ SELECT count(*) FROM generate_series(0, $3::int - 1) AS q(i) CROSS JOIN LATERAL \
               (SELECT node IS NOT NULL AS filled FROM tree_nodes WHERE group_id = $1 AND node_index = 2 * q.i AND from_seq <= $2 \
               ORDER BY from_seq DESC LIMIT 1) t WHERE t.filled";
    let row = client
        .query_one(
            &client.prepare_cached(sql).await?,
            &[&group, &signed(seq), &stored_index(end)],
        )
        .await?;
    Ok(u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX))
}

/// Hashes of some subtrees of the epoch named `seq`, as far as they were written.
pub async fn hashes_at<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    indices: &[u32],
) -> Result<Hashes, Error> {
    let sql = "/* tree::hashes_at */ SELECT q.i, t.hash FROM unnest($3::int[]) AS q(i) CROSS JOIN LATERAL \
               (SELECT hash FROM tree_hashes WHERE group_id = $1 AND node_index = q.i AND from_seq <= $2 ORDER BY from_seq DESC LIMIT 1) t";
    some_at(client, sql, group, seq, indices).await
}

async fn some_at<C: GenericClient>(
    client: &C,
    sql: &str,
    group: &[u8],
    seq: u64,
    indices: &[u32],
) -> Result<BTreeMap<u32, Vec<u8>>, Error> {
    let indices: Vec<i32> = indices.iter().map(|index| stored_index(*index)).collect();
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&group, &signed(seq), &indices],
        )
        .await?;
    Ok(rows.iter().map(|row| (index_of(row), row.get(1))).collect())
}

/// The oldest seq at which the tree is kept whole: that of a Welcome which waits, or the one before the last settled epoch, whose leaves sign reports of it.
pub async fn oldest_kept<C: GenericClient>(
    client: &C,
    group: &[u8],
    settled_seq: u64,
) -> Result<u64, Error> {
    // The first in the order of an index: `min` is looked for among all of them where the planner believes that they are few.
    let sql = "/* tree::oldest_kept */ SELECT least($2, (SELECT commit_seq FROM welcomes \
               WHERE group_id = $1 AND acked_at IS NULL AND expires_at > now() ORDER BY commit_seq LIMIT 1))";
    let row = client
        .query_one(
            &client.prepare_cached(sql).await?,
            &[&group, &signed(settled_seq.saturating_sub(1))],
        )
        .await?;
    Ok(unsigned(row.get(0)))
}

/// Deletes older versions of these nodes and hashes that no tree from `oldest` on is made of.
pub async fn prune(
    tx: &Transaction<'_>,
    group: &[u8],
    oldest: u64,
    indices: &[u32],
) -> Result<(), Error> {
    let indices: Vec<i32> = indices.iter().map(|index| stored_index(*index)).collect();
    for sql in [
        "/* tree::prune */ DELETE FROM tree_nodes t WHERE t.group_id = $1 AND t.node_index = ANY($3) AND t.from_seq < \
         (SELECT max(n.from_seq) FROM tree_nodes n WHERE n.group_id = $1 AND n.node_index = t.node_index AND n.from_seq <= $2)",
        "/* tree::prune */ DELETE FROM tree_hashes t WHERE t.group_id = $1 AND t.node_index = ANY($3) AND t.from_seq < \
         (SELECT max(n.from_seq) FROM tree_hashes n WHERE n.group_id = $1 AND n.node_index = t.node_index AND n.from_seq <= $2)",
    ] {
        tx.execute(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(oldest), &indices],
        )
        .await?;
    }
    Ok(())
}

/// Puts a whole tree in the place of what was written at `seq`.
pub async fn rewrite(
    tx: &Transaction<'_>,
    group: &[u8],
    seq: u64,
    tree: &Tree,
    hashes: &Hashes,
) -> Result<(), Error> {
    for sql in [
        "/* tree::rewrite */ DELETE FROM tree_nodes WHERE group_id = $1 AND from_seq = $2",
        "/* tree::rewrite */ DELETE FROM tree_hashes WHERE group_id = $1 AND from_seq = $2",
    ] {
        tx.execute(&tx.prepare_cached(sql).await?, &[&group, &signed(seq)])
            .await?;
    }
    insert_hashes(tx, group, seq, hashes).await?;
    let mut changes: BTreeMap<u32, Option<Vec<u8>>> = at(tx, group, seq)
        .await?
        .into_iter()
        .map(|(index, _)| (index, None))
        .collect();
    changes.extend(
        tree.nodes()
            .map(|(index, node)| (index, Some(node.to_vec()))),
    );
    insert(tx, group, seq, &changes.into_iter().collect::<Vec<_>>()).await
}

/// The nodes that are not blank in the epoch named `seq`, in index order.
pub async fn at<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Vec<(u32, Vec<u8>)>, Error> {
    range_at(client, group, seq, 0..u32::MAX).await
}

/// A part of [`at`]: the nodes of a range of indices. Bounded by indices and not by a number of nodes, which PostgreSQL finds by sorting all that follow.
pub async fn range_at<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    indices: Range<u32>,
) -> Result<Vec<(u32, Vec<u8>)>, Error> {
    let sql = "/* tree::range_at */ SELECT node_index, node FROM (SELECT DISTINCT ON (node_index) node_index, node FROM tree_nodes \
               WHERE group_id = $1 AND from_seq <= $2 AND node_index >= $3 AND node_index < $4 ORDER BY node_index, from_seq DESC) AS newest \
               WHERE node IS NOT NULL ORDER BY node_index";
    let (from, until) = (stored_index(indices.start), stored_index(indices.end));
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&group, &signed(seq), &from, &until],
        )
        .await?;
    Ok(rows.iter().map(|row| (index_of(row), row.get(1))).collect())
}
