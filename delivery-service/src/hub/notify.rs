//! How the nodes of one database wake each other's followers: what moved is said after COMMIT, everything since the last time at once.
//!
//! A wake-up says where heads are, never what came, and may be lost: the poll finds it then.

use std::{sync::atomic::Ordering, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use service_kit::{db::Db, lifecycle::Shutdown};
use uuid::Uuid;

use crate::{
    hub::{Hub, outbox::Waker},
    ordering::group::DeviceKey,
};

/// The channel, and the name of the sessions that listen on it.
const CHANNEL: &str = "chancery_ds";
/// Between two wake-ups: all nodes get each, and each takes a lock of the whole database.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks whether other nodes are there, and between tries to listen.
const LOOK: Duration = Duration::from_secs(1);

/// Says and hears, until shutdown.
pub fn run(db: &Db, hub: &Hub, shutdown: &Shutdown) {
    let node = Uuid::new_v4();
    let (db, waker) = (db.clone(), hub.waker());
    let hearing = hear(db.clone(), hub.clone(), node, shutdown.clone());
    shutdown.spawn("wake_hear", hearing);
    let saying = say(db.clone(), waker.clone(), node, shutdown.clone());
    shutdown.spawn("wake_say", saying);
    shutdown.spawn("wake_listeners", look(db, waker, shutdown.clone()));
}

/// Whether anybody else listens: a node that is alone says nothing.
async fn look(db: Db, waker: Waker, shutdown: Shutdown) {
    let mut ticker = shutdown.ticker(LOOK);
    while ticker.next().await {
        match db.listeners(CHANNEL).await {
            Ok(count) => waker.heard.store(count > 1, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "cannot see who listens"),
        }
    }
}

async fn say(db: Db, waker: Waker, node: Uuid, shutdown: Shutdown) {
    let soft = shutdown.soft();
    loop {
        tokio::select! {
            () = waker.left.notified() => {}
            () = soft.cancelled() => return,
        }
        while let Some(text) = waker.take(node) {
            if let Err(error) = db.notify(CHANNEL, &text).await {
                tracing::debug!(%error, "a wake-up is lost");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn hear(db: Db, hub: Hub, node: Uuid, shutdown: Shutdown) {
    let mut ticker = shutdown.ticker(LOOK);
    let soft = shutdown.soft();
    let own = node.simple().to_string();
    while ticker.next().await {
        let mut listener = match db.listen(CHANNEL).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::debug!(%error, "cannot listen");
                continue;
            }
        };
        loop {
            let heard = tokio::select! {
                heard = listener.next() => heard,
                () = soft.cancelled() => return,
            };
            let Some(text) = heard else { break };
            if !text.starts_with(&own) {
                tell(&hub, &text);
            }
        }
    }
}

/// What cannot be read is passed over: a newer node may say more.
fn tell(hub: &Hub, text: &str) {
    for item in text.split(' ').skip(1) {
        if let Some((group, seq)) = item.split_once('=') {
            if let (Ok(group), Ok(seq)) = (STANDARD_NO_PAD.decode(group), seq.parse()) {
                hub.group_seen(&group, seq);
            }
        } else if let Some((domain, device)) = item.split_once(':')
            && let (Ok(domain), Ok(device)) = (domain.parse(), device.parse())
        {
            hub.device_seen(DeviceKey { domain, device });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use service_kit::db::NOTIFICATION_BYTES;

    use super::*;

    #[test]
    fn everything_is_said_in_notifications_that_fit() {
        let waker = Waker::default();
        waker.group_moved(b"nobody hears it", 1);
        assert_eq!(waker.take(Uuid::nil()), None);
        waker.heard.store(true, Ordering::Relaxed);
        for n in 0..500u64 {
            let mut id = vec![7; 64];
            id[..8].copy_from_slice(&n.to_be_bytes());
            waker.group_moved(&id, u64::MAX - 1);
            waker.group_moved(&id, u64::MAX);
            waker.device_changed(DeviceKey {
                domain: i16::MAX,
                device: Uuid::from_u128(n.into()),
            });
        }
        let mut items = 0;
        while let Some(text) = waker.take(Uuid::nil()) {
            assert!(text.len() <= NOTIFICATION_BYTES);
            items += text.split(' ').count() - 1;
        }
        assert_eq!(items, 1_000);
    }

    #[tokio::test]
    async fn what_is_heard_wakes_and_what_is_not_understood_is_passed_over() {
        let (hub, bell) = (Hub::default(), Arc::new(crate::hub::Bell::default()));
        let group = [1; 16];
        hub.follow_group(&group, &bell);
        let said = format!("x ? =1 1:2 {}=3", STANDARD_NO_PAD.encode(group));
        tell(&hub, &said);
        assert_eq!(hub.to_read(8).await.len(), 1);
    }
}
