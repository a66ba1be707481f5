//! What the service asks of live devices: to remove members that were revoked or leave, one device at a time; to say that they are in a new epoch, a few at once.

use std::time::Duration;

use chancery_proto::delivery::v1::{Requested, RequestedItem, requested::What};
use service_kit::{db::DbError, items::Items};

use crate::{
    node::Node,
    ordering::group::DeviceKey,
    store::{self, groups::Pulse},
    wire,
};

/// How long a device has for a removal before the next is asked.
pub const TURN_SECONDS: f64 = 2.0;
/// How many are asked at once to report an epoch.
const REPORTERS: usize = 3;
/// The next ones are asked when these have not settled it by then.
const REPORT_TURN: Duration = Duration::from_secs(2);
/// Names in one request; the signed list is fetched apart.
const NAMES: i64 = 20;

/// Looks at what a poll read of the groups that this node's streams follow.
///
/// # Errors
/// The database.
pub async fn look(node: &Node, pulses: &[(Vec<u8>, Pulse)]) -> Result<(), DbError> {
    let mut items = Items::of("requests");
    for (group, pulse) in pulses {
        let name = hex::encode(group);
        items.one(name, ask_what_is_due(node, group, pulse)).await?;
    }
    Ok(())
}

async fn ask_what_is_due(node: &Node, group: &[u8], pulse: &Pulse) -> Result<(), DbError> {
    if pulse.removals_wait {
        ask_removal(node, group).await?;
    }
    match pulse.unsettled {
        Some(epoch_seq) if node.hub.report_is_due(group, epoch_seq, REPORT_TURN) => {
            ask_reports(node, group, epoch_seq).await
        }
        _ => Ok(()),
    }
}

/// Followers of the group on this node that are members in good standing and did not leave an earlier request unanswered.
async fn candidates(node: &Node, group: &[u8]) -> Result<Vec<(DeviceKey, uuid::Uuid)>, DbError> {
    let followers = node.hub.followers(group);
    if followers.is_empty() {
        return Ok(Vec::new());
    }
    let client = node.db.client().await?;
    Ok(store::roster::unmarked(&client, group, &followers).await?)
}

async fn ask_removal(node: &Node, group: &[u8]) -> Result<(), DbError> {
    let candidates = candidates(node, group).await?;
    let client = node.db.client().await?;
    // Who came back from outside, and could not remove anybody with that Commit, goes first.
    let newest = store::groups::head(&client, group)
        .await?
        .and_then(|head| head.committer);
    let first = candidates
        .iter()
        .find(|(key, _)| newest.is_some_and(|committer| committer.key == *key))
        .or(candidates.first());
    let Some((device, _)) = first else {
        return Ok(());
    };
    let turn = store::revocations::take_turn(&client, group, *device, TURN_SECONDS).await?;
    let Some(until) = turn else { return Ok(()) };
    let (devices, _) = store::revocations::barrier(&client, group, NAMES).await?;
    let item = RequestedItem {
        devices: devices
            .into_iter()
            .map(|key| node.domains.device_ref(key))
            .collect(),
        epoch_seq: 0,
    };
    ask(node, group, *device, until, What::Remove(item));
    Ok(())
}

async fn ask_reports(node: &Node, group: &[u8], epoch_seq: u64) -> Result<(), DbError> {
    let candidates = candidates(node, group).await?;
    let client = node.db.client().await?;
    let epoch = store::epochs::find(&client, group, epoch_seq).await?;
    let now = store::groups::now(&client).await?;
    drop(client);
    let committer = epoch.and_then(|epoch| epoch.committer);
    for (device, _) in candidates
        .iter()
        .filter(|(_, user)| committer.is_none_or(|committer| committer.user != *user))
        .take(REPORTERS)
    {
        let item = RequestedItem {
            devices: Vec::new(),
            epoch_seq,
        };
        let until = end_of_turn(now, REPORT_TURN);
        ask(node, group, *device, until, What::Report(item));
    }
    Ok(())
}

/// When a turn that begins now (Unix microseconds) is over.
pub(crate) fn end_of_turn(now: i64, turn: Duration) -> i64 {
    now.saturating_add(i64::try_from(turn.as_micros()).unwrap_or(i64::MAX))
}

/// Asks a device that follows the group on this node for something, until a time in Unix microseconds.
pub(crate) fn ask(node: &Node, group: &[u8], device: DeviceKey, until: i64, what: What) {
    let request = Requested {
        group: Some(wire::group_ref(node, group)),
        deadline_micros: until,
        what: Some(what),
    };
    node.hub.request(group, device, &request);
}
