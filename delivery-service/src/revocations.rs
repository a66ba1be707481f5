//! Revoked devices in their groups: marked one group at a time, each in a short transaction, so that a sweep of thousands stalls nobody; and what
//! members need to remove them: names with signatures.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::delivery::v1::{
    EntryKind, ListPendingRemovalsRequest, ListPendingRemovalsResponse, PendingRemoval,
};
use service_kit::{
    db::{DbError, Transaction, TxError},
    items::Items,
    lifecycle::Shutdown,
};
use uuid::Uuid;

use crate::{
    append::{Body, append_entry},
    caller::Caller,
    error::Error,
    group::{DeviceKey, Rejection},
    node::Node,
    read, store,
    submit::flatten,
};

/// How often recorded revocations are looked for, where no wake-up comes.
const LOOK: Duration = Duration::from_secs(1);
/// Groups of one look.
const GROUPS: i64 = 500;
/// Devices marked in one transaction.
const DEVICES: i64 = 50;
/// Removals in one answer: a signed statement is about 1.5 KiB.
const PAGE: u32 = 100;
/// Names in a refusal.
const NAMES: i64 = 3;

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
        .await
        .map_err(flatten)?;
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
        .await
        .map_err(flatten)?;
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

/// Members that are to be removed, with the signature of the Authentication Service, or of the one who leaves.
///
/// # Errors
/// `GROUP`, `MALFORMED`, or the database.
pub async fn list(
    node: &Node,
    caller: &Caller,
    request: &ListPendingRemovalsRequest,
) -> Result<ListPendingRemovalsResponse, Error> {
    let group = read::group_id(node, request.group.as_ref())?;
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(read_token(token)?),
    };
    let view = read::view(node, caller, group).await?;
    if !view.member() {
        return Err(Error::no_group());
    }
    let client = node.db.client().await?;
    let pending = store::revocations::pending(&client, &view.group, after, PAGE)
        .await
        .map_err(DbError::from)?;
    let next_page_token = match pending.last() {
        Some(last) if pending.len() == PAGE as usize => token(last.key),
        _ => String::new(),
    };
    Ok(ListPendingRemovalsResponse {
        removals: pending
            .into_iter()
            .map(|one| PendingRemoval {
                device: Some(node.domains.device_ref(one.key)),
                evidence: one.evidence.into(),
                leaving: one.leaving,
            })
            .collect(),
        next_page_token,
    })
}

fn token(key: DeviceKey) -> String {
    URL_SAFE_NO_PAD.encode([&key.domain.to_be_bytes(), key.device.as_bytes().as_slice()].concat())
}

fn read_token(token: &str) -> Result<DeviceKey, Error> {
    let bad = || Error::malformed("page_token", "not one of this list");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let (domain, device) = bytes.split_first_chunk::<2>().ok_or_else(bad)?;
    Ok(DeviceKey {
        domain: i16::from_be_bytes(*domain),
        device: Uuid::from_slice(device).map_err(|_| bad())?,
    })
}

/// What a sender needs to know who meets the barrier: how many, the first names, and until when somebody is already asked.
pub async fn explain(node: &Node, group: &[u8], error: Error) -> Error {
    let Error::Rejected(Rejection::PendingRemoval { count }) = error else {
        return error;
    };
    let barrier = async {
        let client = node.db.client().await?;
        store::revocations::barrier(&client, group, NAMES)
            .await
            .map_err(DbError::from)
    };
    let Ok((devices, asked_until)) = barrier.await else {
        return error;
    };
    let names: Vec<String> = devices
        .into_iter()
        .map(|key| node.domains.device_uri(key))
        .collect();
    let mut metadata = vec![("count", count.to_string()), ("first", names.join(" "))];
    metadata.extend(asked_until.map(|until| ("asked_until_micros", until.to_string())));
    Error::Refused {
        reason: chancery_proto::common::v1::Reason::PendingRemoval,
        text: format!("{count} revoked or leaving devices must be removed first"),
        metadata,
    }
}
