//! `LeaveGroup`: a member asks to be removed. The signed request becomes an entry; a member's Commit does the rest.

use std::sync::Arc;

use chancery_proto::{
    common::v1::{DeviceRef, Reason},
    content_hash::ContentHasher,
    delivery::v1::{EntryKind, LeaveGroupRequest, LeaveGroupResponse, LeaveRequestPayload},
    signed,
};
use prost::Message as _;
use service_kit::db::{DbError, Transaction, TxError};
use uuid::Uuid;

use crate::{
    access::caller::Caller,
    commands::submit_commit::read_group,
    error::Error,
    log::entry::{Body, append_entry},
    node::Node,
    ordering::group::{Command, Decision, Leave, Stage},
    request, store, wire,
};

/// How far ahead a request may end, seconds.
const LONGEST: i64 = 30 * 86_400;

struct Prepared {
    group: Vec<u8>,
    message_id: Uuid,
    content_hash: [u8; 32],
    joined_seq: u64,
    /// Encoded `LeaveRequestPayload`: what the members read.
    payload: Vec<u8>,
}

/// Takes a leave request. The same request again, or another one for a membership that is leaving already, gets the first answer.
///
/// # Errors
/// `GROUP`, `PROOF_INVALID`, `UNKNOWN_VALUE` (another membership), `MESSAGE_ID_REUSED`, `GROUP_CLOSED`, `MALFORMED`, or the database.
pub async fn leave(
    node: &Node,
    caller: &Caller,
    request: &LeaveGroupRequest,
) -> Result<LeaveGroupResponse, Error> {
    let prepared = Arc::new(check(node, caller, request).await?);
    let (shared, who) = (prepared.clone(), caller.clone());
    let response = node
        .db
        .run_tx("leave_group", move |tx| {
            let (prepared, who) = (shared.clone(), who.clone());
            Box::pin(async move { in_tx(tx, &who, &prepared).await })
        })
        .await?;
    node.hub.group_moved(&prepared.group, response.seq);
    Ok(response)
}

async fn check(
    node: &Node,
    caller: &Caller,
    request: &LeaveGroupRequest,
) -> Result<Prepared, Error> {
    let group = wire::group_id(node, request.group.as_ref())?;
    let message_id = request::id16("message_id", &request.message_id)?;
    let client = node.db.client().await?;
    let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
    if !(now..=now + LONGEST).contains(&request.expires_at) {
        return Err(Error::malformed(
            "expires_at",
            "over, or more than 30 days ahead",
        ));
    }
    let head = store::groups::head(&client, &group)
        .await
        .map_err(DbError::from)?
        .ok_or_else(Error::no_group)?;
    let device = (caller.domain.as_str(), caller.key.device.as_bytes());
    let content = signed::leave(
        (&node.config.domain, &group),
        device,
        request.joined_seq,
        request.expires_at,
    );
    let key =
        request::leaf_key(&client, &group, head.epoch_seq, &caller.domain, caller.key).await?;
    let key = key.ok_or_else(Error::no_group)?;
    if !signed::verify(&key, signed::LEAVE, &content, &request.signature) {
        return Err(Error::refused(
            Reason::ProofInvalid,
            "the signature is not the leaf's",
        ));
    }
    let payload = LeaveRequestPayload {
        device: Some(DeviceRef {
            domain: caller.domain.clone(),
            id: caller.key.device.as_bytes().to_vec().into(),
        }),
        joined_seq: request.joined_seq,
        expires_at: request.expires_at,
        signature: request.signature.clone(),
    };
    let content_hash = ContentHasher::new("LeaveGroup")
        .field(1, &group)
        .field(2, message_id.as_bytes())
        .number(3, request.joined_seq)
        .field(4, &request.expires_at.to_be_bytes())
        .field(5, &request.signature)
        .finish();
    Ok(Prepared {
        group,
        message_id,
        content_hash,
        joined_seq: request.joined_seq,
        payload: payload.encode_to_vec(),
    })
}

async fn in_tx(
    tx: &Transaction<'_>,
    caller: &Caller,
    leave: &Prepared,
) -> Result<LeaveGroupResponse, TxError<Error>> {
    let Some(head) = store::groups::lock(tx, &leave.group).await? else {
        return Err(TxError::Rejected(Error::no_group()));
    };
    let (group, now) = read_group(tx, &leave.group, leave.message_id, caller.key, head).await?;
    let command = Command::Leave(Leave {
        content_hash: leave.content_hash,
        joined_seq: leave.joined_seq,
    });
    let append = match group
        .decide(&command, now)
        .map_err(|rejection| TxError::Rejected(rejection.into()))?
    {
        Decision::Replay(prior) => {
            return Ok(LeaveGroupResponse {
                seq: prior.seq,
                chain: prior.chain.to_vec().into(),
                replayed: true,
            });
        }
        Decision::Append(append) => append,
    };
    if let Some((seq, chain)) = store::roster::leaving(tx, &leave.group, caller.key).await? {
        return Ok(LeaveGroupResponse {
            seq,
            chain: chain.into(),
            replayed: true,
        });
    }
    let mut append = append;
    if store::revocations::others_leave(tx, &leave.group, caller.key).await? {
        // Nobody is left who could remove the last ones.
        append.head.stage = Stage::Empty;
    }
    let body = Body {
        kind: EntryKind::LeaveRequest,
        message_id: leave.message_id,
        content_hash: leave.content_hash,
        payload: &leave.payload,
    };
    let head = append_entry(tx, &leave.group, &group.head, &append, body).await?;
    let marked = store::roster::mark_leaving(tx, &leave.group, caller.key, &leave.payload).await?;
    if marked != 1 {
        return Err(TxError::Rejected(Error::Corrupt(
            "a member vanished under the lock",
        )));
    }
    Ok(LeaveGroupResponse {
        seq: append.seq,
        chain: head.chain.to_vec().into(),
        replayed: false,
    })
}
