//! What members need to remove revoked and leaving devices: names with signatures.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::delivery::v1::{
    ListPendingRemovalsRequest, ListPendingRemovalsResponse, PendingRemoval,
};
use service_kit::db::DbError;
use uuid::Uuid;

use crate::{
    access::caller::Caller,
    error::Error,
    node::Node,
    ordering::group::{DeviceKey, Rejection},
    reading::log,
    store, wire,
};

/// Removals in one answer: a signed statement is about 1.5 KiB.
const PAGE: u32 = 100;
/// Names in a refusal.
const NAMES: i64 = 3;

/// Members that are to be removed, with the signature of the Authentication Service, or of the one who leaves.
///
/// # Errors
/// `GROUP`, `MALFORMED`, or the database.
pub async fn list(
    node: &Node,
    caller: &Caller,
    request: &ListPendingRemovalsRequest,
) -> Result<ListPendingRemovalsResponse, Error> {
    let group = wire::group_id(node, request.group.as_ref())?;
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(read_token(token)?),
    };
    let view = log::view(node, caller, group).await?;
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
