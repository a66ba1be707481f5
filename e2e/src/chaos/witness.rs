//! Raw subscriptions on the contract alone: what the server gives is written down as it comes, before any client could repair it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chancery_proto::delivery::v1::{
    Cursor, SubscribeRequest, delivery_service_client::DeliveryServiceClient, frame,
};
use client_cli::{core::records::GroupName, transport};
use uuid::Uuid;

use super::{
    history::{Event, Seen},
    people::Crowd,
};
use crate::programs::text;

const PAUSE: Duration = Duration::from_millis(200);
/// Heartbeats come every two seconds here.
const SILENCE: Duration = Duration::from_secs(8);

/// Follows a group until it is over, as its first member; a stream that ends is opened again where it ended.
pub async fn watch(crowd: Arc<Crowd>, ground: usize, url: String) -> anyhow::Result<()> {
    let mut cursor = (0, Vec::new());
    let mut token = None;
    while !crowd.over.load(Ordering::Relaxed) {
        if token.is_none() {
            token = borrow_token(&crowd, ground).await;
        }
        if let Some(borrowed) = &token
            && follow(&crowd, ground, &url, borrowed, &mut cursor)
                .await
                .is_err()
        {
            // It may have been the token.
            token = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn borrow_token(crowd: &Arc<Crowd>, ground: usize) -> Option<String> {
    let member = *crowd.grounds[ground].members.first()?;
    let device = crowd.people[member].device.clone();
    let asking = tokio::task::spawn_blocking(move || device.attempt(&["debug", "token"]));
    let said = asking.await.ok()?.ok()?;
    text(&said.answer, "token").ok().map(str::to_owned)
}

async fn follow(
    crowd: &Crowd,
    ground: usize,
    url: &str,
    token: &str,
    cursor: &mut (u64, Vec<u8>),
) -> anyhow::Result<()> {
    let name: GroupName = crowd.grounds[ground]
        .name
        .parse()
        .map_err(anyhow::Error::msg)?;
    let stream = crowd.recorder.number();
    let request = SubscribeRequest {
        cursors: vec![Cursor {
            group: Some(name.to_ref()),
            seq: cursor.0,
            chain: cursor.1.clone().into(),
        }],
        ..SubscribeRequest::default()
    };
    let channel = transport::channel(url, None, None)?;
    let mut client = DeliveryServiceClient::new(channel);
    let request = transport::with_token(request, token)?;
    let mut frames = client.subscribe(request).await?.into_inner();
    crowd.recorder.note(Event::Opened {
        stream,
        group: name.to_string(),
        after: cursor.0,
    });
    while !crowd.over.load(Ordering::Relaxed) {
        let Some(frame) = tokio::time::timeout(SILENCE, frames.message()).await?? else {
            return Ok(());
        };
        let Some(frame::Frame::Entries(entries)) = frame.frame else {
            continue;
        };
        let seen = entries.entries.iter().map(|entry| Seen {
            seq: entry.seq,
            message_id: Uuid::from_slice(&entry.message_id)
                .unwrap_or_default()
                .to_string(),
            chain: hex::encode(&entry.chain),
        });
        crowd.recorder.note(Event::Frame {
            stream,
            entries: seen.collect(),
        });
        if let Some(last) = entries.entries.last() {
            *cursor = (last.seq, last.chain.to_vec());
        }
    }
    Ok(())
}
