//! What is too old: messages lose their payload, later the beginning of a log goes; readers are told, never left in silence.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::time::Duration;

use chancery_proto::{common::v1::Reason, delivery::v1::*, status::Refusal};
use service_kit::db::{Db, PoolOptions};
use support::{forge::Device, *};
use uuid::Uuid;

struct Old {
    world: World,
    a: Device,
    b: Device,
    group: Group,
}

impl Old {
    /// Seqs 1 (Commit), 2 to 4 (messages), 5 (Commit), 6 (message).
    async fn new() -> Self {
        let world = World::start(2, &["--retention-look-seconds", "1"]).await;
        let [a, b] = [1, 2].map(|n| world.device(Uuid::from_u128(n)));
        let mut group = Group::create(&world, &a).await;
        group.add(&world, &a, &[&a, &b], &[&b]).await;
        for _ in 0..3 {
            let sent = send(&world, &b, group.message(Uuid::new_v4(), 1)).await;
            group.sent(&sent.unwrap());
        }
        let tree = forge::tree(&[&a, &b], 5);
        let request = group.commit(group.info(&[], &[]), &[], &tree);
        let result = submit(&world, &a, request).await.unwrap();
        group.accepted(&result, tree);
        let sent = send(&world, &b, group.message(Uuid::new_v4(), 1)).await;
        group.sent(&sent.unwrap());
        Self { world, a, b, group }
    }

    /// Makes entries up to this one as old as this.
    async fn age(&self, seq: i64, days: i32) {
        let db = Db::connect(&self.world.db.url(), &PoolOptions::default()).unwrap();
        let client = db.client().await.unwrap();
        let sql = "UPDATE log SET accepted_at = now() - $1 * interval '1 day' WHERE seq <= $2";
        client
            .execute(sql, &[&f64::from(days), &seq])
            .await
            .unwrap();
    }

    async fn read(
        &self,
        after_seq: u64,
        after_chain: &[u8],
    ) -> Result<Vec<ReadLogResponse>, Refusal> {
        let request = ReadLogRequest {
            after_seq,
            after_chain: after_chain.to_vec().into(),
            ..self.group.read(0)
        };
        let request = self.world.by(&self.a, request);
        let refusal = |status| Refusal::from_status(&status);
        let answer = self.world.client().read_log(request).await;
        let mut stream = answer.map_err(refusal)?.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = stream.message().await.map_err(refusal)? {
            parts.push(part);
        }
        Ok(parts)
    }

    /// Reads until it looks like this.
    async fn until(
        &self,
        after_seq: u64,
        looks: impl Fn(&Result<Vec<ReadLogResponse>, Refusal>) -> bool,
    ) -> Result<Vec<ReadLogResponse>, Refusal> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let read = self.read(after_seq, &[]).await;
            if looks(&read) {
                return read;
            }
            assert!(tokio::time::Instant::now() < deadline, "{read:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn pruned(read: &[ReadLogResponse]) -> Vec<(u64, u64)> {
    let pruned = read.iter().filter_map(|part| part.pruned.as_ref());
    pruned.map(|p| (p.from_seq, p.to_seq)).collect()
}

fn entries(read: &[ReadLogResponse]) -> Vec<u64> {
    let entries = read.iter().filter_map(|part| part.entries.as_ref());
    entries
        .flat_map(|part| part.entries.iter().map(|entry| entry.seq))
        .collect()
}

#[tokio::test]
async fn old_messages_are_pruned_and_commits_outlive_them() {
    let old = Old::new().await;
    let whole = old.read(0, &[]).await.unwrap();
    assert_eq!(entries(&whole), [1, 2, 3, 4, 5, 6]);
    let first = whole[0].entries.clone().unwrap().entries[2].clone();
    old.age(5, 40).await;
    let read = old
        .until(0, |read| read.as_ref().is_ok_and(|r| !pruned(r).is_empty()))
        .await
        .unwrap();
    assert_eq!(pruned(&read), [(2, 4)]);
    assert_eq!(entries(&read), [1, 5, 6]);
    // The chain goes on where the gap ends, and a cursor inside it still fits.
    let gap = read.iter().find_map(|part| part.pruned.clone()).unwrap();
    let whole = &whole[0].entries.as_ref().unwrap().entries;
    assert_eq!(gap.chain, whole[3].chain);
    let inside = old.read(3, &first.chain).await.unwrap();
    assert_eq!(pruned(&inside), [(4, 4)]);
    let other = old.read(3, &[9; 32]).await.unwrap_err();
    assert_eq!(other.reason, Some(Reason::HistoryChanged));
    let request = FetchPayloadRequest {
        group: Some(old.group.reference()),
        seq: 3,
    };
    let request = old.world.by(&old.a, request);
    let refused = old.world.client().fetch_payload(request).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::CursorTooOld);
    // Its id is still known: what was said once is not said again.
    let mut again = old
        .group
        .message(Uuid::from_slice(&first.message_id).unwrap(), 1);
    again.epoch_seq = 1;
    let refused = send(&old.world, &old.b, again).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::MessageIdReused);
    // A stream is told too.
    let request = SubscribeRequest {
        all_groups: true,
        ..SubscribeRequest::default()
    };
    let request = old.world.by(&old.a, request);
    let mut stream = old
        .world
        .client()
        .subscribe(request)
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    loop {
        match stream.message().await.unwrap().unwrap().frame.unwrap() {
            frame::Frame::Entries(entries) => seen.extend(entries.entries.iter().map(|e| e.seq)),
            frame::Frame::Pruned(pruned) => {
                assert_eq!((pruned.from_seq, pruned.to_seq), (2, 4));
                seen.push(0);
            }
            frame::Frame::CaughtUp(_) => break,
            _ => {}
        }
    }
    assert_eq!(seen, [1, 0, 5, 6]);
}

#[tokio::test]
async fn a_cursor_before_the_kept_part_is_too_old_and_the_current_epoch_stays() {
    let old = Old::new().await;
    let whole = old.read(0, &[]).await.unwrap();
    let chains: Vec<_> = whole[0]
        .entries
        .as_ref()
        .unwrap()
        .entries
        .iter()
        .map(|entry| entry.chain.clone())
        .collect();
    old.age(6, 400).await;
    let refused = old.until(0, Result::is_err).await.unwrap_err();
    assert_eq!(refused.reason, Some(Reason::CursorTooOld));
    assert_eq!(refused.metadata["oldest"], "4");
    let refused = old.read(2, &chains[1]).await.unwrap_err();
    assert_eq!(refused.reason, Some(Reason::CursorTooOld));
    // The last one before the current epoch's Commit is still a cursor, and is still checked.
    let read = old.read(4, &chains[3]).await.unwrap();
    assert_eq!(entries(&read), [5]);
    assert_eq!(pruned(&read), [(6, 6)]);
    let other = old.read(4, &[9; 32]).await.unwrap_err();
    assert_eq!(other.reason, Some(Reason::HistoryChanged));
}
