//! Wake-ups only. A wake-up carries no data and may be lost: one poll of the watched heads per node is correctness, a wake-up is latency.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use tokio::sync::Notify;

use crate::group::DeviceKey;

/// What woke a stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Woken {
    /// Groups that have something new.
    pub groups: HashSet<Vec<u8>>,
    /// The device's list of groups, or its inbox, changed.
    pub device: bool,
    /// The device was revoked.
    pub revoked: bool,
}

/// One stream's bell: it remembers what is new, so that ringing it twice, or while nobody listens, loses nothing.
#[derive(Debug, Default)]
pub struct Bell {
    woken: Mutex<Woken>,
    notify: Notify,
}

impl Bell {
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
    devices: HashMap<DeviceKey, Watched<u64>>,
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
    pub fn follow_device(&self, device: DeviceKey, bell: &Arc<Bell>) {
        let mut inner = held(&self.inner);
        let watched = inner.devices.entry(device).or_default();
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

    /// A device's groups or inbox changed, as far as this node knows.
    pub fn device_changed(&self, device: DeviceKey) {
        let mut inner = held(&self.inner);
        if let Some(watched) = inner.devices.get_mut(&device) {
            ring(&mut watched.bells, |woken| woken.device = true);
        }
    }

    /// What the poll read of a device.
    pub fn device_polled(&self, device: DeviceKey, version: u64, revoked: bool) {
        let mut inner = held(&self.inner);
        let Some(watched) = inner.devices.get_mut(&device) else {
            return;
        };
        let moved = version != watched.seen;
        watched.seen = version;
        if moved || revoked {
            ring(&mut watched.bells, |woken| {
                woken.device |= moved;
                woken.revoked |= revoked;
            });
        }
    }

    /// What somebody still follows; forgets the rest.
    pub fn watched(&self) -> (Vec<Vec<u8>>, Vec<DeviceKey>) {
        let mut inner = held(&self.inner);
        inner.groups.retain(|_, w| alive(&mut w.bells));
        inner.devices.retain(|_, w| alive(&mut w.bells));
        (
            inner.groups.keys().cloned().collect(),
            inner.devices.keys().copied().collect(),
        )
    }
}

fn alive(bells: &mut Vec<Weak<Bell>>) -> bool {
    bells.retain(|bell| bell.strong_count() > 0);
    !bells.is_empty()
}

fn ring(bells: &mut Vec<Weak<Bell>>, change: impl Fn(&mut Woken)) {
    bells.retain(|bell| match bell.upgrade() {
        Some(bell) => {
            bell.ring(&change);
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
