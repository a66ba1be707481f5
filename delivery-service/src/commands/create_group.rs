//! Use case: a new group, ordered from seq 0.

use std::sync::Arc;

use chancery_proto::{
    chain,
    common::v1::Reason,
    delivery::v1::{CreateGroupResponse, EntryKind, ReplacedPayload},
};
use prost::Message as _;
use service_kit::db::{Transaction, TxError};

use crate::{
    access::caller::Caller,
    commands::submit_commit::read_caller,
    error::Error,
    log::entry::{Body, append_entry},
    node::Node,
    ordering::group::{Group, Head},
    request::{PreparedGroup, Replaces},
    store, wire,
};

/// Creates a group of exactly the caller. A repeat by the same device with the same bytes gets the first answer.
///
/// # Errors
/// `GROUP_EXISTS`, `DEVICE_REVOKED`, the database.
pub async fn create_group(
    node: &Node,
    caller: &Caller,
    group: PreparedGroup,
) -> Result<CreateGroupResponse, Error> {
    let group = Arc::new(group);
    let payload = ReplacedPayload {
        successor: Some(wire::group_ref(node, &group.group)),
        by: Some(node.domains.device_ref(caller.key)),
    };
    let (shared, who) = (group.clone(), caller.clone());
    let response = node
        .db
        .run_tx("create_group", move |tx| {
            let (group, who) = (shared.clone(), who.clone());
            let payload = payload.encode_to_vec();
            Box::pin(async move { create_in(tx, &who, &group, &payload).await })
        })
        .await?;
    node.hub.device_changed(caller.key);
    if let Some(old) = &group.replaces {
        node.hub.group_changed(&old.group);
    }
    Ok(response)
}

async fn create_in(
    tx: &Transaction<'_>,
    caller: &Caller,
    group: &PreparedGroup,
    replaced: &[u8],
) -> Result<CreateGroupResponse, TxError<Error>> {
    let device = store::devices::remember(tx, caller.key, caller.user).await?;
    if device.revoked {
        return Err(TxError::Rejected(
            crate::ordering::group::Rejection::DeviceRevoked.into(),
        ));
    }
    let created = store::groups::Created {
        suite: group.suite.into(),
        creator: caller.key,
        create_hash: group.content_hash,
    };
    let answer = |replayed| CreateGroupResponse {
        head_seq: 0,
        epoch: group.epoch,
        epoch_seq: 0,
        chain: chain::start().to_vec().into(),
        replayed,
    };
    if !store::groups::insert(tx, &group.group, &created).await? {
        let first = store::groups::created(tx, &group.group).await?;
        let same = first.is_some_and(|first| {
            first.creator == created.creator && first.create_hash == created.create_hash
        });
        return if same {
            Ok(answer(true))
        } else {
            Err(TxError::Rejected(Error::refused(
                Reason::GroupExists,
                "this group id was used before",
            )))
        };
    }
    if let Some(old) = &group.replaces {
        close_replaced(tx, caller, old, replaced).await?;
    }
    let head = Head::created(group.epoch, group.past_epochs, group.external_join);
    store::groups::insert_head(tx, &group.group, &head).await?;
    let epoch = store::epochs::Epoch {
        epoch: group.epoch,
        epoch_seq: 0,
        group_info: group.group_info.clone(),
        group_state_hash: group.group_state_hash.to_vec(),
        tree_width: group.tree_width,
        encrypted_group_info: None,
        floor_seq: Some(0),
        committer: None,
    };
    store::epochs::insert(tx, &group.group, &epoch).await?;
    store::tree::insert(tx, &group.group, 0, &group.tree).await?;
    store::tree::insert_hashes(tx, &group.group, 0, &group.tree_hashes).await?;
    let creator = store::roster::Joiner {
        key: caller.key,
        user: caller.user,
        leaf_index: Some(0),
        signature_key: Some(group.signature_key.clone()),
    };
    store::roster::open(tx, &group.group, 0, &[creator]).await?;
    Ok(answer(false))
}

/// Closes the group that this one replaces. The first successor wins.
async fn close_replaced(
    tx: &Transaction<'_>,
    caller: &Caller,
    old: &Replaces,
    payload: &[u8],
) -> Result<(), TxError<Error>> {
    let Some(head) = store::groups::lock(tx, &old.group).await? else {
        return Err(TxError::Rejected(Error::no_group()));
    };
    let (membership, caller_revoked) = read_caller(tx, &old.group, caller.key).await?;
    let state = Group {
        head,
        caller: membership,
        caller_revoked,
        prior: None,
    };
    let now = store::groups::now(tx).await?;
    let append = state
        .replace(old.head_seq, now)
        .map_err(|rejection| TxError::Rejected(rejection.into()))?;
    let body = Body::by_service(EntryKind::Replaced, payload);
    append_entry(tx, &old.group, &state.head, &append, body).await?;
    Ok(())
}
