//! What wakes one stream.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use chancery_proto::delivery::v1::Requested;
use futures_util::task::AtomicWaker;

use crate::{
    hub::{GroupId, held},
    ordering::group::DeviceKey,
};

/// What woke a stream.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Woken {
    /// Groups that have something new.
    pub groups: HashSet<GroupId>,
    /// The device's list of groups, or its inbox, changed.
    pub device: bool,
    /// Its user was suspended, or its certificate expired.
    pub suspended: bool,
    /// What this device is asked to do. Lost with the stream: the next device is asked.
    pub requests: Vec<Requested>,
}

/// One stream's bell: it remembers what is new, so that ringing it twice, or while nobody listens, loses nothing.
#[derive(Debug, Default)]
pub struct Bell {
    pub(super) device: Option<DeviceKey>,
    woken: Mutex<Woken>,
    /// Set before anything is shared that the device must not read.
    revoked: AtomicBool,
    /// The node shuts down.
    closing: AtomicBool,
    listener: AtomicWaker,
}

impl Bell {
    /// Of a stream of this device.
    pub fn of(device: DeviceKey) -> Self {
        Self {
            device: Some(device),
            ..Self::default()
        }
    }

    /// Waits until something is new, and takes it; at once, and with nothing, for a revoked device and when the node shuts down. One waits at a time.
    pub async fn wait(&self) -> Woken {
        std::future::poll_fn(|cx| {
            self.listener.register(cx.waker());
            let woken = self.take();
            if woken != Woken::default() || self.revoked() || self.closing() {
                Poll::Ready(woken)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Takes what is new now.
    pub fn take(&self) -> Woken {
        std::mem::take(&mut *held(&self.woken))
    }

    /// Whether the device was revoked. Whoever looks after it took a [`crate::hub::Piece`] learns of every revocation before that piece's entries.
    pub fn revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// Whether the node shuts down.
    pub fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.listener.wake();
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.listener.wake();
    }

    pub(super) fn ring(&self, change: impl FnOnce(&mut Woken)) {
        change(&mut held(&self.woken));
        self.listener.wake();
    }
}
