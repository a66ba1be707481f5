//! Retention: what is too old loses its payload, later its row; in small batches, and never a kind that this program does not know.

use std::time::Duration;

use service_kit::{db::TxError, lifecycle::Shutdown};

use crate::{error::Error, node::Node, store, store::retention::Cutoffs, submit::flatten};

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
    let mut pruned = 0;
    loop {
        let batch = node
            .db
            .run_tx("prune_messages", move |tx| {
                Box::pin(async move {
                    Ok::<_, TxError<Error>>(store::retention::empty(tx, cutoffs, BATCH).await?)
                })
            })
            .await
            .map_err(flatten)?;
        pruned += batch;
        if batch == 0 {
            break;
        }
    }
    let groups = node
        .db
        .run_tx("prune_look", move |tx| {
            Box::pin(async move {
                Ok::<_, TxError<Error>>(store::retention::with_old_entries(tx, cutoffs).await?)
            })
        })
        .await
        .map_err(flatten)?;
    for group in groups {
        pruned += forget_beginning(node, group, cutoffs).await?;
    }
    let swept = node
        .db
        .run_tx("prune_expired", |tx| {
            Box::pin(async move {
                Ok::<_, TxError<Error>>(store::retention::delete_expired(tx, BATCH).await?)
            })
        })
        .await
        .map_err(flatten)?;
    metrics::counter!("chancery_ds_entries_pruned_total").increment(pruned);
    metrics::counter!("chancery_ds_expired_rows_deleted_total").increment(swept);
    Ok(pruned)
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
            .await
            .map_err(flatten)?;
        deleted += batch;
        if batch == 0 {
            return Ok(deleted);
        }
    }
}
