//! The poll: what makes followers catch up when a wake-up is lost. Once for each node, not for each stream.

use std::time::Duration;

use service_kit::{db::DbError, lifecycle::Shutdown};
use uuid::Uuid;

use crate::{
    hub::GroupId,
    node::Node,
    ordering::group::DeviceKey,
    reading::shared_reader::Revocations,
    store::{groups, roster},
    upkeep::{requests, warming},
};

/// So many groups cost as much as a device.
const GROUPS_EACH: usize = 10;

/// Polls what this node's streams watch, until shutdown.
pub async fn run(node: Node, shutdown: Shutdown) {
    let mut ticker = shutdown.ticker(Duration::from_millis(node.config.head_poll_millis));
    let mut poll = Poll::default();
    while ticker.next().await {
        if let Err(error) = poll.look(&node).await {
            tracing::warn!(%error, "cannot poll the heads");
        }
    }
}

/// What is left of a round: a node that follows much takes several looks for it.
#[derive(Debug, Default)]
struct Poll {
    groups: Vec<GroupId>,
    devices: Vec<(DeviceKey, Uuid)>,
    revocations: Revocations,
}

impl Poll {
    async fn look(&mut self, node: &Node) -> Result<(), DbError> {
        if self.groups.is_empty() {
            node.hub.sweep();
            self.groups = node.hub.groups();
        }
        if self.devices.is_empty() {
            self.devices = node.hub.devices();
        }
        if self.groups.is_empty() && self.devices.is_empty() {
            return Ok(());
        }
        let at_most = node.config.head_poll_items as usize;
        let groups = self
            .groups
            .split_off(self.groups.len().saturating_sub(at_most));
        // A device is looked up in all its groups.
        let at_most = (at_most / GROUPS_EACH).max(1);
        let devices = self
            .devices
            .split_off(self.devices.len().saturating_sub(at_most));
        let client = node.db.client().await?;
        self.revocations.look(node, &client).await?;
        node.gate.clock.saw(groups::now(&client).await?);
        let ids: Vec<&[u8]> = groups.iter().map(|group| &**group).collect();
        let pulses = groups::pulses(&client, &ids).await?;
        for (group, pulse) in &pulses {
            node.hub.group_seen(group, pulse.head_seq);
        }
        for (device, pulse) in roster::pulses(&client, &devices).await? {
            node.hub.device_polled(device, pulse);
        }
        drop(client);
        let asked = requests::look(node, &pulses).await;
        let warmed = warming::look(node, &pulses).await;
        asked.and(warmed)
    }
}
