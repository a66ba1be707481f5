//! Revoked devices in their groups: marked one group at a time, each in a short transaction, so that a sweep of thousands stalls nobody.

use std::{sync::Arc, time::Duration};

use chancery_proto::delivery::v1::EntryKind;
use service_kit::{
    db::{DbError, Transaction, TxError},
    items::Items,
    lifecycle::Shutdown,
};

use crate::{
    error::Error,
    log::entry::{Body, append_entry},
    node::Node,
    store,
};

/// How often recorded revocations are looked for, where no wake-up comes.
const LOOK: Duration = Duration::from_secs(1);
/// Groups of one look.
const GROUPS: i64 = 500;
/// Devices marked in one transaction.
const DEVICES: i64 = 50;

/// Marks recorded revocations in their groups, until shutdown. Any number of nodes may: the group's lock decides.
pub async fn run_sweeps(node: Node, shutdown: Shutdown) {
    let stop = shutdown.soft();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = node.revoked.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        if let Err(error) = sweep(&node).await {
            tracing::warn!(%error, "cannot mark revoked devices; it goes on where it stopped");
        }
    }
}

async fn sweep(node: &Node) -> Result<(), Error> {
    // Once around all groups: one that fails comes again in the next sweep, and holds up none behind it.
    let (mut items, mut after) = (Items::of("revocations"), Vec::new());
    loop {
        let client = node.db.client().await?;
        let groups = store::revocations::unmarked_groups(&client, &after, GROUPS)
            .await
            .map_err(DbError::from)?;
        drop(client);
        let Some(last) = groups.last() else { break };
        after = last.clone();
        for group in groups {
            items
                .one(hex::encode(&group), mark_all(node, &group))
                .await?;
        }
    }
    let applied = node
        .db
        .run_tx("apply_revocations", |tx| {
            Box::pin(
                async move { Ok::<_, TxError<Error>>(store::revocations::apply_marked(tx).await?) },
            )
        })
        .await?;
    if applied > 0 {
        tracing::info!(applied, "revocations are marked in every group");
        metrics::counter!("chancery_ds_revocations_applied_total").increment(applied);
    }
    Ok(())
}

async fn mark_all(node: &Node, group: &[u8]) -> Result<(), Error> {
    while mark_some(node, group).await? {}
    Ok(())
}

/// Marks some devices of one group; true if there may be more.
async fn mark_some(node: &Node, group: &[u8]) -> Result<bool, Error> {
    let shared = Arc::new(group.to_vec());
    let (head_seq, marked) = node
        .db
        .run_tx("mark_revoked", move |tx| {
            let group = shared.clone();
            Box::pin(async move { mark_in(tx, &group).await })
        })
        .await?;
    node.hub.group_moved(group, head_seq);
    Ok(marked == DEVICES)
}

async fn mark_in(tx: &Transaction<'_>, group: &[u8]) -> Result<(u64, i64), TxError<Error>> {
    let Some(mut head) = store::groups::lock(tx, group).await? else {
        return Ok((0, 0));
    };
    let now = store::groups::now(tx).await?;
    let unmarked = store::revocations::unmarked_members(tx, group, DEVICES).await?;
    let mut marked = 0;
    for device in unmarked {
        if store::revocations::mark(tx, group, device.key, &device.evidence).await? == 0 {
            continue;
        }
        let append = head.mark_revoked(now);
        let body = Body::by_service(EntryKind::RemovalRequested, &device.evidence);
        head = append_entry(tx, group, &head, &append, body).await?;
        marked += 1;
    }
    Ok((head.seq, marked))
}
