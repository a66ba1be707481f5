//! Three people in a settled group, for what is said of epochs.

use std::time::Duration;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{report_epoch_request::Report, *},
    signed,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Group, World,
    forge::{self, Device},
    log, reason, send, submit,
};

/// Alice, Bob and Carol in a settled group, and what the group is before something happens.
pub struct Trio {
    pub world: World,
    pub alice: Device,
    pub bob: Device,
    pub carol: Device,
    pub group: Group,
}

impl Trio {
    /// Voids come after a second.
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(options: &[&str]) -> Self {
        let options = [&["--void-after-seconds", "1"], options].concat();
        let world = World::start(2, &options).await;
        let [alice, bob, carol] = [1, 2, 3].map(|n| world.device(Uuid::from_u128(n)));
        let mut group = Group::create(&world, &alice).await;
        group
            .add(&world, &alice, &[&alice, &bob, &carol], &[&bob, &carol])
            .await;
        let mut trio = Self {
            world,
            alice,
            bob,
            carol,
            group,
        };
        trio.say(true).await;
        trio
    }

    /// An application message; of a device that settles nothing new, because all is settled, or of the committer.
    pub async fn say(&mut self, bob: bool) -> SendMessageResponse {
        let by = if bob { &self.bob } else { &self.alice };
        let message = self.group.message(Uuid::new_v4(), 1);
        let sent = send(&self.world, by, message).await.unwrap();
        self.group.sent(&sent);
        sent
    }

    /// Alice commits; what the entry holds.
    pub async fn commit(&mut self) -> (CommitResult, Vec<u8>) {
        let tree = forge::tree(&[&self.alice, &self.bob, &self.carol], 7);
        let request = self.group.commit(self.group.info(&[], &[]), &[], &tree);
        let payload = request.bundles[0].commit.to_vec();
        let result = submit(&self.world, &self.alice, request).await.unwrap();
        self.group.accepted(&result, tree);
        (result, payload)
    }

    pub async fn report(&self, by: &Device, report: Report, epoch_seq: u64) -> Result<u64, Reason> {
        let request = ReportEpochRequest {
            group: Some(self.group.reference()),
            epoch_seq,
            report: Some(report),
        };
        let request = self.world.by(by, request);
        match self.world.client().report_epoch(request).await {
            Ok(answer) => Ok(answer.into_inner().settled_seq),
            Err(status) => Err(reason(&status)),
        }
    }

    pub async fn fails(&self, by: &Device, seq: u64, payload: &[u8]) -> Result<u64, Reason> {
        self.report(by, failure(&self.group, by, seq, payload), seq)
            .await
    }

    pub async fn confirms(&self, by: &Device, seq: u64) -> Result<u64, Reason> {
        self.report(by, Report::StateHash(vec![7; 32].into()), seq)
            .await
    }

    /// Waits for the VOID entry at the end of the log.
    pub async fn void(&self) -> (Entry, VoidPayload) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let log = log(&self.world, &self.bob, &self.group).await.unwrap();
            let last = log.last().unwrap().clone();
            if last.kind == EntryKind::Void as u32 {
                let Some(entry::Body::Payload(payload)) = last.body.clone() else {
                    panic!("a VOID entry without its payload");
                };
                return (last, VoidPayload::decode(payload).unwrap());
            }
            assert!(tokio::time::Instant::now() < deadline, "no VOID entry");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the service has looked at the failures of an epoch, and left it standing.
    pub async fn failures_looked_at(&self, epoch_seq: u64) {
        let url = self.world.db.url();
        let db = service_kit::db::Db::connect(&url, &Default::default()).unwrap();
        let client = db.client().await.unwrap();
        let sql = "SELECT void_at IS NULL FROM epochs WHERE group_id = $1 AND epoch_seq = $2";
        let seq = i64::try_from(epoch_seq).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let row = client
                .query_one(sql, &[&self.group.id, &seq])
                .await
                .unwrap();
            if row.get(0) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "never looked at");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn state(&self, by: &Device) -> GetGroupResponse {
        let request = GetGroupRequest {
            group: Some(self.group.reference()),
            at_seq: 0,
        };
        let request = self.world.by(by, request);
        let mut parts = self.world.client().get_group(request).await.unwrap();
        parts.get_mut().message().await.unwrap().unwrap()
    }
}

pub fn failure(group: &Group, by: &Device, seq: u64, payload: &[u8]) -> Report {
    let sha256: [u8; 32] = Sha256::digest(payload).into();
    let expires_at = time::OffsetDateTime::now_utc().unix_timestamp() + 3_600;
    let content = signed::failure(
        (forge::DOMAIN, &group.id),
        (forge::DOMAIN, by.device.as_bytes()),
        seq,
        &sha256,
        1,
        expires_at,
    );
    Report::Failure(FailureReport {
        reporter: Some(by.device_ref()),
        commit_seq: seq,
        commit_sha256: sha256.to_vec().into(),
        reason: 1,
        expires_at,
        signature: by
            .sign(&signed::to_be_signed(signed::FAILURE, &content))
            .into(),
    })
}
