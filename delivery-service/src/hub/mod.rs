//! Who follows what on this node, and how they are woken. A wake-up carries no data and may be lost: one poll of the watched heads per node is
//! correctness, a wake-up is latency.
//!
//! A group's news are read once for all who follow it, by [`crate::reading::shared_reader`], and shared as encoded [`Piece`]s. A stream that is behind reads for itself
//! ([`crate::reading::subscribe`]) until it is where the others are.

pub mod head_cache;
pub mod notify;
pub mod outbox;
mod room;
mod signal;
mod tail;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

use chancery_proto::delivery::v1::Requested;
use tokio::sync::Notify;
use uuid::Uuid;

pub use room::Room;
pub use signal::{Bell, Woken};
pub use tail::{Next, Piece, Position};

use crate::{
    hub::{head_cache::Remembered, outbox::Waker},
    ordering::group::DeviceKey,
    store::roster::DevicePulse,
};

/// A group's id, shared by all who follow it.
pub type GroupId = Arc<[u8]>;

/// A device with a stream on this node.
#[derive(Debug, Default)]
struct Watched {
    user: Uuid,
    /// Of the list of groups.
    version: u64,
    bells: Vec<Weak<Bell>>,
}

#[derive(Debug, Default)]
struct Inner {
    groups: HashMap<GroupId, Arc<Room>>,
    devices: HashMap<DeviceKey, Watched>,
    /// The node shuts down: nobody may begin to follow.
    closing: bool,
    /// Who was asked for which groups, and has not called since.
    asked: HashMap<DeviceKey, HashSet<Vec<u8>>>,
    /// The unsettled epoch of each group that reports were last asked of, and when.
    reports: HashMap<Vec<u8>, (u64, Instant)>,
    /// What was last found of the tree of each group.
    warming: HashMap<Vec<u8>, Warming>,
}

/// A look at a group's tree.
#[derive(Debug, Clone, Copy)]
struct Warming {
    epoch_seq: u64,
    /// When to look again if another epoch began.
    after_commit: Instant,
    /// When to look again in any case.
    until: Instant,
}

/// Rooms that have something to read.
#[derive(Debug, Default)]
struct Queue {
    rooms: Mutex<Vec<Arc<Room>>>,
    called: Notify,
}

/// Every stream of this node by what it follows.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    inner: Arc<Mutex<Inner>>,
    queue: Arc<Queue>,
    /// Of the other nodes.
    waker: Waker,
    remembered: Remembered,
}

/// A mutex whose data stays whole when a holder panics: every change here is a single insertion.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Hub {
    /// A hub that also tells when what is remembered of a group is old.
    pub fn new(remembered: Remembered) -> Self {
        Self {
            remembered,
            ..Self::default()
        }
    }

    /// Follows a group. Call it *before* the first read.
    pub fn follow_group(&self, group: &[u8], bell: &Arc<Bell>) -> Arc<Room> {
        let mut inner = held(&self.inner);
        let room = match inner.groups.get(group) {
            Some(room) => room.clone(),
            None => {
                let id = GroupId::from(group);
                let room = Arc::new(Room::new(id.clone()));
                inner.groups.insert(id, room.clone());
                room
            }
        };
        // Under the lock: a sweep must not find it empty.
        room.enter(bell);
        room
    }

    /// Follows a device's list of groups and its inbox. Call it *before* the first read.
    pub fn follow_device(&self, device: DeviceKey, user: Uuid, bell: &Arc<Bell>) {
        let mut inner = held(&self.inner);
        let watched = inner.devices.entry(device).or_default();
        watched.user = user;
        watched.bells.push(Arc::downgrade(bell));
        if inner.closing {
            bell.close();
        }
    }

    /// The node shuts down: every stream ends, those that begin later too.
    pub fn close(&self) {
        let mut inner = held(&self.inner);
        inner.closing = true;
        let bells = inner.devices.values().flat_map(|watched| &watched.bells);
        for bell in bells.filter_map(Weak::upgrade) {
            bell.close();
        }
    }

    fn room(&self, group: &[u8]) -> Option<Arc<Room>> {
        held(&self.inner).groups.get(group).cloned()
    }

    /// How other nodes hear what is told here.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// This node moved a group's head.
    pub fn group_moved(&self, group: &[u8], head_seq: u64) {
        self.group_seen(group, head_seq);
        self.waker.group_moved(group, head_seq);
    }

    /// A group's head was seen there.
    pub fn group_seen(&self, group: &[u8], head_seq: u64) {
        self.remembered.moved(group, head_seq);
        if let Some(room) = self.room(group)
            && room.moved(head_seq)
        {
            self.call(room);
        }
    }

    /// Something about a group changed, and this node does not know its head.
    pub fn group_changed(&self, group: &[u8]) {
        if let Some(room) = self.room(group)
            && room.changed()
        {
            self.call(room);
        }
    }

    fn call(&self, room: Arc<Room>) {
        held(&self.queue.rooms).push(room);
        self.queue.called.notify_one();
    }

    /// A follower of a room has read everything up to here.
    pub fn begin(&self, room: &Arc<Room>, position: Position) {
        if room.begin(position) {
            self.call(room.clone());
        }
    }

    /// A room was read, all of it or with more to come.
    pub fn was_read(&self, room: &Arc<Room>, more: bool) {
        if room.was_read(more) {
            self.call(room.clone());
        }
    }

    /// Waits until groups have something to read, and takes at most so many of them, each with the place to read from; each is to be followed by
    /// [`Hub::was_read`] or [`Hub::was_missed`].
    pub async fn to_read(&self, at_most: usize) -> Vec<(Arc<Room>, Option<Position>)> {
        loop {
            let called = self.queue.called.notified();
            let taken: Vec<Arc<Room>> = {
                let mut rooms = held(&self.queue.rooms);
                let count = rooms.len().min(at_most);
                let taken = rooms.drain(..count).collect();
                if !rooms.is_empty() {
                    // For the next reader.
                    self.queue.called.notify_one();
                }
                taken
            };
            if !taken.is_empty() {
                let begun = taken.into_iter().map(|room| {
                    let from = room.read_from();
                    (room, from)
                });
                return begun.collect();
            }
            called.await;
        }
    }

    /// A room could not be read: the next news call for it again, or the poll.
    pub fn was_missed(&self, room: &Room) {
        room.was_missed();
    }

    /// This node changed a device's groups or inbox.
    pub fn device_changed(&self, device: DeviceKey) {
        self.device_seen(device);
        self.waker.device_changed(device);
    }

    /// A device's groups or inbox changed somewhere.
    pub fn device_seen(&self, device: DeviceKey) {
        for bell in self.bells_of(device) {
            bell.ring(|woken| woken.device = true);
        }
    }

    /// A device was revoked: from here on none of its streams sends a [`Piece`].
    pub fn revoke(&self, device: DeviceKey) {
        for bell in self.bells_of(device) {
            bell.revoke();
        }
    }

    /// A device was cut off: its streams end.
    pub fn suspend(&self, device: DeviceKey) {
        for bell in self.bells_of(device) {
            bell.ring(|woken| woken.suspended = true);
        }
    }

    fn bells_of(&self, device: DeviceKey) -> Vec<Arc<Bell>> {
        let inner = held(&self.inner);
        let bells = inner.devices.get(&device).map_or(&[][..], |w| &w.bells);
        bells.iter().filter_map(Weak::upgrade).collect()
    }

    /// What the poll read of a device.
    pub fn device_polled(&self, device: DeviceKey, pulse: DevicePulse) {
        let moved = {
            let mut inner = held(&self.inner);
            let Some(watched) = inner.devices.get_mut(&device) else {
                return;
            };
            std::mem::replace(&mut watched.version, pulse.version) != pulse.version
        };
        if pulse.revoked {
            self.revoke(device);
        }
        if pulse.suspended {
            self.suspend(device);
        }
        if moved {
            self.device_seen(device);
        }
    }

    /// The devices whose streams follow a group, without those that were asked for it and have not called since.
    pub fn followers(&self, group: &[u8]) -> Vec<DeviceKey> {
        let Some(room) = self.room(group) else {
            return Vec::new();
        };
        let following: HashSet<DeviceKey> =
            room.bells().iter().filter_map(|bell| bell.device).collect();
        let inner = held(&self.inner);
        let silent = |device: &DeviceKey| {
            let asked = inner.asked.get(device);
            asked.is_some_and(|groups| groups.contains(group))
        };
        following.into_iter().filter(|d| !silent(d)).collect()
    }

    /// Asks one device that follows a group.
    pub fn request(&self, group: &[u8], device: DeviceKey, request: &Requested) {
        let bells = self.room(group).map_or_else(Vec::new, |room| room.bells());
        for bell in bells.iter().filter(|bell| bell.device == Some(device)) {
            bell.ring(|woken| woken.requests.push(request.clone()));
        }
        let mut inner = held(&self.inner);
        let asked = inner.asked.entry(device).or_default();
        asked.insert(group.to_vec());
    }

    /// A device called: it may be asked again.
    pub fn called(&self, device: DeviceKey) {
        held(&self.inner).asked.remove(&device);
    }

    /// Whether it is time to ask for reports of this epoch, the first time or again; if so, it counts as asked.
    pub fn report_is_due(&self, group: &[u8], epoch_seq: u64, every: Duration) -> bool {
        let mut inner = held(&self.inner);
        let now = Instant::now();
        let last = inner.reports.get(group);
        let due =
            last.is_none_or(|(seq, at)| *seq != epoch_seq || now.duration_since(*at) >= every);
        if due {
            inner.reports.insert(group.to_vec(), (epoch_seq, now));
        }
        due
    }

    /// Whether it is time to look at the tree of a group.
    pub fn warming_is_due(&self, group: &[u8], epoch_seq: u64) -> bool {
        let inner = held(&self.inner);
        inner.warming.get(group).is_none_or(|last| {
            let now = Instant::now();
            last.until <= now || (last.epoch_seq != epoch_seq && last.after_commit <= now)
        })
    }

    /// A group's tree was looked at; again after a pause, or after a shorter one when another epoch began.
    pub fn warming(&self, group: &[u8], epoch_seq: u64, after_commit: Duration, pause: Duration) {
        let now = Instant::now();
        let last = Warming {
            epoch_seq,
            after_commit: now + after_commit,
            until: now + pause,
        };
        held(&self.inner).warming.insert(group.to_vec(), last);
    }

    /// Forgets what nobody follows any more.
    pub fn sweep(&self) {
        let mut guard = held(&self.inner);
        let inner = &mut *guard;
        inner.groups.retain(|_, room| room.sweep());
        inner.devices.retain(|_, watched| {
            watched.bells.retain(|bell| bell.strong_count() > 0);
            !watched.bells.is_empty()
        });
        let (groups, devices) = (&inner.groups, &inner.devices);
        inner.asked.retain(|device, _| devices.contains_key(device));
        inner
            .reports
            .retain(|group, _| groups.contains_key(group.as_slice()));
        inner
            .warming
            .retain(|group, _| groups.contains_key(group.as_slice()));
    }

    /// The groups that are followed.
    pub fn groups(&self) -> Vec<GroupId> {
        held(&self.inner).groups.keys().cloned().collect()
    }

    /// The devices with a stream here, with their users.
    pub fn devices(&self) -> Vec<(DeviceKey, Uuid)> {
        let inner = held(&self.inner);
        let devices = inner.devices.iter();
        devices.map(|(device, w)| (*device, w.user)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position { seq, roster_seq: 0 }
    }

    fn shared(room: &Room, after: u64, last: u64) {
        let piece = Piece {
            after,
            last,
            bytes: vec![0].into(),
            leavers: Arc::default(),
        };
        room.share(vec![piece], at(last));
    }

    #[tokio::test]
    async fn news_are_read_once_and_ring_before_the_wait() {
        let (hub, bell) = (Hub::default(), Arc::new(Bell::default()));
        let room = hub.follow_group(b"g", &bell);
        hub.begin(&room, at(0));
        hub.group_moved(b"g", 1);
        hub.group_moved(b"g", 2);
        let rooms = hub.to_read(8).await;
        assert_eq!(rooms.len(), 1);
        assert_eq!(rooms[0].1, Some(at(0)));
        shared(&rooms[0].0, 0, 2);
        hub.was_read(&room, false);
        assert!(bell.wait().await.groups.contains(b"g".as_slice()));
        assert!(matches!(room.next(0), Next::Piece(piece) if piece.last == 2));
        assert!(held(&hub.queue.rooms).is_empty());
    }

    #[tokio::test]
    async fn an_old_head_calls_nobody_and_what_moves_while_one_reads_calls_again() {
        let (hub, bell) = (Hub::default(), Arc::new(Bell::default()));
        let room = hub.follow_group(b"g", &bell);
        hub.group_moved(b"g", 2);
        assert_eq!(hub.to_read(8).await.len(), 1);
        hub.group_moved(b"g", 2);
        hub.was_read(&room, false);
        assert!(held(&hub.queue.rooms).is_empty());
        hub.group_moved(b"g", 3);
        assert_eq!(hub.to_read(8).await.len(), 1);
        hub.group_moved(b"g", 4);
        assert!(held(&hub.queue.rooms).is_empty(), "one reader for a room");
        hub.was_read(&room, false);
        assert_eq!(hub.to_read(8).await.len(), 1);
        // What could not be read is called again by the same head.
        hub.was_missed(&room);
        hub.group_moved(b"g", 4);
        assert_eq!(hub.to_read(8).await.len(), 1);
    }

    #[tokio::test]
    async fn what_comes_before_the_first_follower_is_there_is_read_once_it_is() {
        let (hub, bell) = (Hub::default(), Arc::new(Bell::default()));
        let room = hub.follow_group(b"g", &bell);
        hub.group_moved(b"g", 2);
        assert_eq!(hub.to_read(8).await[0].1, None);
        hub.was_read(&room, false);
        hub.begin(&room, at(1));
        assert_eq!(hub.to_read(8).await[0].1, Some(at(1)));
    }

    #[tokio::test]
    async fn a_revoked_device_hears_it_before_what_is_shared_later() {
        let hub = Hub::default();
        let device = DeviceKey {
            domain: 1,
            device: Uuid::from_u128(1),
        };
        let bell = Arc::new(Bell::of(device));
        hub.follow_device(device, Uuid::from_u128(2), &bell);
        assert!(!bell.revoked());
        hub.revoke(device);
        assert!(bell.revoked());
        assert_eq!(bell.wait().await, Woken::default());
    }

    #[test]
    fn what_nobody_follows_is_forgotten() {
        let hub = Hub::default();
        let bell = Arc::new(Bell::default());
        hub.follow_group(b"g", &bell);
        hub.sweep();
        assert_eq!(hub.groups().len(), 1);
        drop(bell);
        hub.sweep();
        assert_eq!(hub.groups().len(), 0);
    }
}
