//! Public trees as opaque nodes, each kept by the seq of the Commit that wrote it.

use std::collections::BTreeMap;

use chancery_proto::tree::Tree;
use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::Error;

use super::signed;

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
        let indices: Vec<i32> = part
            .iter()
            .map(|(index, _)| i32::try_from(*index).unwrap_or(i32::MAX))
            .collect();
        let bodies: Vec<Option<&[u8]>> = part.iter().map(|(_, node)| node.as_deref()).collect();
        tx.execute(
            &tx.prepare_cached(sql).await?,
            &[&group, &signed(seq), &indices, &bodies],
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
) -> Result<(), Error> {
    let sql = "/* tree::rewrite */ DELETE FROM tree_nodes WHERE group_id = $1 AND from_seq = $2";
    tx.execute(&tx.prepare_cached(sql).await?, &[&group, &signed(seq)])
        .await?;
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

/// The nodes that are not blank in the epoch before the one that `seq` began.
pub async fn before<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Vec<(u32, Vec<u8>)>, Error> {
    match seq.checked_sub(1) {
        Some(seq) => at(client, group, seq).await,
        None => Ok(Vec::new()),
    }
}

/// The nodes that are not blank in the epoch named `seq`, in index order.
pub async fn at<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
) -> Result<Vec<(u32, Vec<u8>)>, Error> {
    let sql = "/* tree::at */ SELECT node_index, node FROM (SELECT DISTINCT ON (node_index) node_index, node FROM tree_nodes \
               WHERE group_id = $1 AND from_seq <= $2 ORDER BY node_index, from_seq DESC) AS newest WHERE node IS NOT NULL ORDER BY node_index";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&group, &signed(seq)])
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let index = u32::try_from(row.get::<_, i32>(0)).unwrap_or(0);
            (index, row.get(1))
        })
        .collect())
}
