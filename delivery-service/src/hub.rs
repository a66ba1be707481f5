//! Wake-ups only. A wake-up carries no data and may be lost: one poll of the watched heads per node is correctness, a wake-up is latency.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

use chancery_proto::delivery::v1::Requested;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{group::DeviceKey, store::roster::DevicePulse};

/// What woke a stream.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Woken {
    /// Groups that have something new.
    pub groups: HashSet<Vec<u8>>,
    /// The device's list of groups, or its inbox, changed.
    pub device: bool,
    /// The device was revoked.
    pub revoked: bool,
    /// Its user was suspended, or its certificate expired.
    pub suspended: bool,
    /// What this device is asked to do. Lost with the stream: the next device is asked.
    pub requests: Vec<Requested>,
}

/// One stream's bell: it remembers what is new, so that ringing it twice, or while nobody listens, loses nothing.
#[derive(Debug, Default)]
pub struct Bell {
    device: Option<DeviceKey>,
    woken: Mutex<Woken>,
    notify: Notify,
}

impl Bell {
    /// Of a stream of this device.
    pub fn of(device: DeviceKey) -> Self {
        Self {
            device: Some(device),
            ..Self::default()
        }
    }

    /// Waits until something is new, and takes it.
    pub async fn wait(&self) -> Woken {
        loop {
            let notified = self.notify.notified();
            let woken = std::mem::take(&mut *held(&self.woken));
            if woken != Woken::default() {
                return woken;
            }
            notified.await;
        }
    }

    fn ring(&self, change: impl FnOnce(&mut Woken)) {
        change(&mut held(&self.woken));
        self.notify.notify_one();
    }
}

#[derive(Debug, Default)]
struct Watched<V> {
    seen: V,
    bells: Vec<Weak<Bell>>,
}

#[derive(Debug, Default)]
struct Inner {
    groups: HashMap<Vec<u8>, Watched<u64>>,
    /// With the user, and the version of the list of groups.
    devices: HashMap<DeviceKey, Watched<(Uuid, u64)>>,
    /// Who was asked for which groups, and has not called since.
    asked: HashMap<DeviceKey, HashSet<Vec<u8>>>,
    /// The unsettled epoch of each group that reports were last asked of, and when.
    reports: HashMap<Vec<u8>, (u64, Instant)>,
}

/// Every stream of this node by what it follows.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    inner: Arc<Mutex<Inner>>,
}

/// A mutex whose data stays whole when a holder panics: every change here is a single insertion.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Hub {
    /// Follows a group. Call it *before* the first read.
    pub fn follow_group(&self, group: &[u8], bell: &Arc<Bell>) {
        let mut inner = held(&self.inner);
        let watched = inner.groups.entry(group.to_vec()).or_default();
        watched.bells.push(Arc::downgrade(bell));
    }

    /// Follows a device's list of groups and its inbox. Call it *before* the first read.
    pub fn follow_device(&self, device: DeviceKey, user: Uuid, bell: &Arc<Bell>) {
        let mut inner = held(&self.inner);
        let watched = inner.devices.entry(device).or_default();
        watched.seen.0 = user;
        watched.bells.push(Arc::downgrade(bell));
    }

    /// A group's head moved, as far as this node knows.
    pub fn group_moved(&self, group: &[u8], head_seq: u64) {
        let mut inner = held(&self.inner);
        if let Some(watched) = inner.groups.get_mut(group)
            && head_seq > watched.seen
        {
            watched.seen = head_seq;
            ring(&mut watched.bells, |woken| {
                woken.groups.insert(group.to_vec());
            });
        }
    }

    /// Something about a group changed, and this node does not know its head.
    pub fn group_changed(&self, group: &[u8]) {
        let mut inner = held(&self.inner);
        if let Some(watched) = inner.groups.get_mut(group) {
            ring(&mut watched.bells, |woken| {
                woken.groups.insert(group.to_vec());
            });
        }
    }

    /// A device's groups or inbox changed, as far as this node knows.
    pub fn device_changed(&self, device: DeviceKey) {
        let mut inner = held(&self.inner);
        if let Some(watched) = inner.devices.get_mut(&device) {
            ring(&mut watched.bells, |woken| woken.device = true);
        }
    }

    /// What the poll read of a device.
    pub fn device_polled(&self, device: DeviceKey, pulse: DevicePulse) {
        let mut inner = held(&self.inner);
        let Some(watched) = inner.devices.get_mut(&device) else {
            return;
        };
        let moved = pulse.version != watched.seen.1;
        watched.seen.1 = pulse.version;
        if moved || pulse.revoked || pulse.suspended {
            ring(&mut watched.bells, |woken| {
                woken.device |= moved;
                woken.revoked |= pulse.revoked;
                woken.suspended |= pulse.suspended;
            });
        }
    }

    /// The devices whose streams follow a group, without those that were asked for it and have not called since.
    pub fn followers(&self, group: &[u8]) -> Vec<DeviceKey> {
        let inner = held(&self.inner);
        let silent = |device: &DeviceKey| {
            let asked = inner.asked.get(device);
            asked.is_some_and(|groups| groups.contains(group))
        };
        let bells = inner.groups.get(group).map_or(&[][..], |w| &w.bells);
        let devices: HashSet<DeviceKey> = bells
            .iter()
            .filter_map(|bell| bell.upgrade()?.device)
            .filter(|device| !silent(device))
            .collect();
        devices.into_iter().collect()
    }

    /// Asks one device that follows a group.
    pub fn request(&self, group: &[u8], device: DeviceKey, request: Requested) {
        let mut inner = held(&self.inner);
        if let Some(watched) = inner.groups.get_mut(group) {
            ring_if(
                &mut watched.bells,
                |bell| bell.device == Some(device),
                |woken| woken.requests.push(request.clone()),
            );
        }
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

    /// What somebody still follows, devices with their users; forgets the rest.
    pub fn watched(&self) -> (Vec<Vec<u8>>, Vec<(DeviceKey, Uuid)>) {
        let mut guard = held(&self.inner);
        let inner = &mut *guard;
        inner.groups.retain(|_, w| alive(&mut w.bells));
        inner.devices.retain(|_, w| alive(&mut w.bells));
        let (groups, devices) = (&inner.groups, &inner.devices);
        inner.asked.retain(|device, _| devices.contains_key(device));
        inner.reports.retain(|group, _| groups.contains_key(group));
        (
            inner.groups.keys().cloned().collect(),
            inner
                .devices
                .iter()
                .map(|(device, watched)| (*device, watched.seen.0))
                .collect(),
        )
    }
}

fn alive(bells: &mut Vec<Weak<Bell>>) -> bool {
    bells.retain(|bell| bell.strong_count() > 0);
    !bells.is_empty()
}

fn ring(bells: &mut Vec<Weak<Bell>>, change: impl Fn(&mut Woken)) {
    ring_if(bells, |_| true, change);
}

fn ring_if(
    bells: &mut Vec<Weak<Bell>>,
    which: impl Fn(&Bell) -> bool,
    change: impl Fn(&mut Woken),
) {
    bells.retain(|bell| match bell.upgrade() {
        Some(bell) => {
            if which(&bell) {
                bell.ring(&change);
            }
            true
        }
        None => false,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ring_before_the_wait_is_not_lost() {
        let (hub, bell) = (Hub::default(), Arc::new(Bell::default()));
        hub.follow_group(b"g", &bell);
        hub.group_moved(b"g", 1);
        hub.group_moved(b"g", 2);
        let woken = bell.wait().await;
        assert!(woken.groups.contains(b"g".as_slice()));
    }

    #[tokio::test]
    async fn an_old_head_rings_nobody() {
        let (hub, bell) = (Hub::default(), Arc::new(Bell::default()));
        hub.follow_group(b"g", &bell);
        hub.group_moved(b"g", 2);
        bell.wait().await;
        hub.group_moved(b"g", 2);
        assert_eq!(*held(&bell.woken), Woken::default());
    }

    #[test]
    fn what_nobody_follows_is_forgotten() {
        let hub = Hub::default();
        let bell = Arc::new(Bell::default());
        hub.follow_group(b"g", &bell);
        assert_eq!(hub.watched().0.len(), 1);
        drop(bell);
        assert_eq!(hub.watched().0.len(), 0);
    }
}
