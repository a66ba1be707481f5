//! What a Delivery Service can do that does not mean well, or was restored: repeat, forget, keep back, swap.

use chancery_proto::delivery::v1::{EntryKind, LeaveRequestPayload};
use prost::Message as _;
use uuid::Uuid;

use super::{Service, device_ref};

impl Service {
    /// Appends the first leave request of a device again, as if it had asked a second time. False where it never asked.
    pub fn repeat_leave_request(&self, group: &[u8], device: Uuid) -> bool {
        let now = self.now();
        self.tables(|tables| {
            tables.ids += 1;
            let message_id = u128::from(tables.ids).to_be_bytes();
            let Some(room) = tables.rooms.get_mut(group) else {
                return false;
            };
            let asked = room.log.iter().find_map(|logged| {
                let is_request = logged.entry.kind == EntryKind::LeaveRequest as u32;
                let payload = logged.payload().filter(|_| is_request)?;
                let request = LeaveRequestPayload::decode(payload).ok()?;
                (request.device == Some(device_ref(device))).then(|| payload.to_vec())
            });
            let Some(payload) = asked else {
                return false;
            };
            let append = room.head.mark_revoked(now);
            let kind = EntryKind::LeaveRequest;
            let pending_removals = room.head.pending_removals;
            room.append(group, append, kind, message_id, [0; 32], &payload);
            // Nobody is marked by it.
            room.head.pending_removals = pending_removals;
            true
        })
    }

    /// Knows nothing of a group any more.
    pub fn forget(&self, group: &[u8]) {
        self.tables(|tables| tables.rooms.remove(group));
    }

    /// Answers for no tree of a group any more.
    pub fn forget_trees(&self, group: &[u8]) {
        self.tables(|tables| tables.treeless.insert(group.to_vec()));
    }

    /// Gives out no KeyPackage of a device, or does again.
    pub fn withhold_packages(&self, device: Uuid, withheld: bool) {
        self.tables(|tables| match withheld {
            true => tables.withheld_packages.insert(device),
            false => tables.withheld_packages.remove(&device),
        });
    }

    /// Gives out this KeyPackage for a device whatever it published, or what it published.
    pub fn swap_package(&self, device: Uuid, body: Option<Vec<u8>>) {
        self.tables(|tables| match body {
            Some(body) => tables.swapped_packages.insert(device, body),
            None => tables.swapped_packages.remove(&device),
        });
    }

    /// Keeps the Welcomes of a device back, or gives them out.
    pub fn withhold_welcomes(&self, device: Uuid, withheld: bool) {
        self.tables(|tables| match withheld {
            true => tables.withheld_welcomes.insert(device),
            false => tables.withheld_welcomes.remove(&device),
        });
    }

    /// What tells a restored service from the one before.
    pub fn incarnation(&self) -> Vec<u8> {
        let number = self.tables(|tables| tables.incarnation);
        u128::from(number).to_be_bytes().to_vec()
    }

    /// Is as it was before any KeyPackage was given out, and says that it was restored.
    pub fn restore_packages(&self) {
        self.tables(|tables| {
            for package in &mut tables.packages {
                package.claimed = None;
            }
            tables.incarnation += 1;
        });
    }

    /// What took an entry of a group back.
    pub fn voided_by(&self, group: &[u8], seq: u64) -> Option<u64> {
        self.tables(|tables| {
            let room = tables.rooms.get(group)?;
            let logged = room.log.iter().find(|logged| logged.entry.seq == seq)?;
            room.voided_by(seq, logged.entry.epoch_seq, logged.entry.kind)
        })
    }

    /// KeyPackages of a device in stock that were given out before; the last resort of now among them.
    pub fn resold(&self, device: Uuid) -> usize {
        self.tables(|tables| {
            let own = |p: &&super::Package| p.owner.device == device && p.claimed.is_none();
            let one_time = tables.packages.iter().filter(own);
            let one_time = one_time.filter(|p| !p.last_resort && p.given > 0).count();
            let last_resort = tables.packages.iter().filter(own).rfind(|p| p.last_resort);
            one_time + usize::from(last_resort.is_some_and(|p| p.given > 0))
        })
    }
}
