//! What this node has to tell the others, gathered until the next notification.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use service_kit::db::NOTIFICATION_BYTES;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::ordering::group::DeviceKey;

/// The largest item: a group's id of 64 bytes, and its head.
const ITEM_BYTES: usize = 120;

/// What this node has to say.
#[derive(Debug, Default)]
struct News {
    groups: HashMap<Vec<u8>, u64>,
    devices: HashSet<DeviceKey>,
}

/// Where writers leave what other nodes should know.
#[derive(Debug, Clone, Default)]
pub struct Waker {
    news: Arc<Mutex<News>>,
    /// Something was left.
    pub(super) left: Arc<Notify>,
    /// Other nodes listen.
    pub(super) heard: Arc<AtomicBool>,
}

impl Waker {
    fn leave(&self, leave: impl FnOnce(&mut News)) {
        if self.heard.load(Ordering::Relaxed) {
            leave(&mut self.news.lock().unwrap_or_else(|e| e.into_inner()));
            self.left.notify_one();
        }
    }

    /// A group's head moved.
    pub fn group_moved(&self, group: &[u8], head_seq: u64) {
        self.leave(|news| {
            let seq = news.groups.entry(group.to_vec()).or_default();
            *seq = head_seq.max(*seq);
        });
    }

    /// A device's groups or inbox changed.
    pub fn device_changed(&self, device: DeviceKey) {
        self.leave(|news| {
            news.devices.insert(device);
        });
    }

    /// As much as one notification takes; nothing where there are no news.
    pub(super) fn take(&self, node: Uuid) -> Option<String> {
        let mut news = self.news.lock().unwrap_or_else(|e| e.into_inner());
        if news.groups.is_empty() && news.devices.is_empty() {
            return None;
        }
        let mut text = node.simple().to_string();
        let mut fits = |item: String| {
            text.push_str(&item);
            text.len() + ITEM_BYTES <= NOTIFICATION_BYTES
        };
        let mut more = true;
        while more && let Some(group) = news.groups.keys().next().cloned() {
            let seq = news.groups.remove(&group).unwrap_or_default();
            more = fits(format!(" {}={seq}", STANDARD_NO_PAD.encode(&group)));
        }
        while more && let Some(device) = news.devices.iter().next().copied() {
            news.devices.remove(&device);
            more = fits(format!(" {}:{}", device.domain, device.device.simple()));
        }
        Some(text)
    }
}
