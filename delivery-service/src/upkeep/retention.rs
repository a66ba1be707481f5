//! Retention: what is too old loses its payload, later its row; in small batches, and never a kind that this program does not know.

use std::time::Duration;

use service_kit::{db::TxError, items::Items, lifecycle::Shutdown};

use crate::{
    error::Error,
    node::Node,
    store::{self, retention::Cutoffs},
};

/// Rows of one transaction.
const BATCH: i64 = 500;

/// Prunes from time to time, until shutdown. Any number of nodes may.
pub async fn run(node: Node, shutdown: Shutdown) {
    let mut ticker = shutdown.ticker(Duration::from_secs(node.config.retention_look_seconds));
    while ticker.next().await {
        match prune(&node).await {
            Ok(0) => {}
            Ok(pruned) => tracing::info!(pruned, "entries past retention"),
            Err(error) => {
                tracing::warn!(%error, "cannot prune; it goes on where it stopped");
            }
        }
    }
}

/// Prunes everything that is past retention now; how many entries lost their payload or their row.
///
/// # Errors
/// The database.
pub async fn prune(node: &Node) -> Result<u64, Error> {
    let limits = &node.config.limits;
    let cutoffs = Cutoffs {
        messages_days: limits.retention_days.into(),
        handshakes_days: limits.handshake_retention_days.into(),
    };
    // None of the three depends on another.
    let emptied = empty_messages(node, cutoffs).await;
    let forgotten = forget_beginnings(node, cutoffs).await;
    let swept = delete_expired(node).await;
    let pruned = emptied? + forgotten?;
    swept?;
    Ok(pruned)
}

/// Takes the payloads of old messages away; how many.
async fn empty_messages(node: &Node, cutoffs: Cutoffs) -> Result<u64, Error> {
    let mut emptied = 0;
    loop {
        let batch = node
            .db
            .run_tx("prune_messages", move |tx| {
                Box::pin(async move {
                    Ok::<_, TxError<Error>>(store::retention::empty(tx, cutoffs, BATCH).await?)
                })
            })
            .await?;
        emptied += batch;
        metrics::counter!("chancery_ds_entries_pruned_total").increment(batch);
        if batch == 0 {
            return Ok(emptied);
        }
    }
}

/// Deletes the old beginnings of all groups' logs; how many entries.
async fn forget_beginnings(node: &Node, cutoffs: Cutoffs) -> Result<u64, Error> {
    let groups = node
        .db
        .run_tx("prune_look", move |tx| {
            Box::pin(async move {
                Ok::<_, TxError<Error>>(store::retention::with_old_entries(tx, cutoffs).await?)
            })
        })
        .await?;
    let mut items = Items::of("retention");
    let mut forgotten = 0;
    for group in groups {
        let name = hex::encode(&group);
        let deleted = items.one(name, forget_beginning(node, group, cutoffs));
        forgotten += deleted.await?.unwrap_or(0);
    }
    metrics::counter!("chancery_ds_entries_pruned_total").increment(forgotten);
    Ok(forgotten)
}

/// Deletes Welcomes, KeyPackages and claims that nobody can use any more.
async fn delete_expired(node: &Node) -> Result<(), Error> {
    let swept = node
        .db
        .run_tx("prune_expired", |tx| {
            Box::pin(async move {
                Ok::<_, TxError<Error>>(store::retention::delete_expired(tx, BATCH).await?)
            })
        })
        .await?;
    metrics::counter!("chancery_ds_expired_rows_deleted_total").increment(swept);
    Ok(())
}

/// The rows before the last old entry go; that one stays, empty, so that a cursor there can still be checked.
async fn forget_beginning(node: &Node, group: Vec<u8>, cutoffs: Cutoffs) -> Result<u64, Error> {
    let mut deleted = 0;
    loop {
        let id = group.clone();
        let batch = node
            .db
            .run_tx("prune_group", move |tx| {
                let id = id.clone();
                Box::pin(async move {
                    if store::groups::lock(tx, &id).await?.is_none() {
                        return Ok(0);
                    }
                    Ok::<_, TxError<Error>>(
                        store::retention::delete_beginning(tx, &id, cutoffs, BATCH).await?,
                    )
                })
            })
            .await?;
        deleted += batch;
        if batch == 0 {
            return Ok(deleted);
        }
    }
}
