//! Loops over groups: one group that fails each time it comes up holds up no other, and is done once it can be.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use chancery_proto::delivery::v1::{Frame, SubscribeRequest};
use service_kit::items::fault;
use support::{Group, World, forge, forge::Device, owner, send, submit};
use tonic::Streaming;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(20);

/// Two groups with the same three members, in the order of their ids; the first member follows both.
struct Two {
    world: World,
    devices: [Device; 3],
    groups: [Group; 2],
    _following: Streaming<Frame>,
}

impl Two {
    async fn new() -> Self {
        let world = World::start(1, &["--retention-look-seconds", "1"]).await;
        let devices = [1, 2, 3].map(|n| world.device(Uuid::from_u128(n)));
        let mut groups = [
            Self::group(&world, &devices).await,
            Self::group(&world, &devices).await,
        ];
        groups.sort_by(|one, other| one.id.cmp(&other.id));
        let request = SubscribeRequest {
            all_groups: true,
            ..SubscribeRequest::default()
        };
        let request = world.by(&devices[0], request);
        let following = world.client().subscribe(request).await.unwrap();
        Self {
            world,
            devices,
            groups,
            _following: following.into_inner(),
        }
    }

    /// A group whose log is a Commit, a message, a Commit.
    async fn group(world: &World, devices: &[Device; 3]) -> Group {
        let [a, b, c] = devices;
        let mut group = Group::create(world, a).await;
        group.add(world, a, &[a, b, c], &[b, c]).await;
        let sent = send(world, b, group.message(Uuid::new_v4(), 1)).await;
        group.sent(&sent.unwrap());
        commit(world, &mut group, devices).await;
        group
    }

    async fn sql(&self, sql: &str) {
        owner(&self.world).await.batch_execute(sql).await.unwrap();
    }

    /// Gives the loop of this name something to do in both groups.
    async fn begin(&mut self, name: &str) {
        match name {
            "requests" => {}
            "warming" => {
                for group in &mut self.groups {
                    commit(&self.world, group, &self.devices).await;
                }
            }
            "retention" => {
                self.sql("UPDATE log SET accepted_at = now() - interval '2000 days'")
                    .await;
            }
            "voids" => {
                // More epochs of the first group than are read at once, all due before those of the second.
                let first = hex::encode(&self.groups[0].id);
                self.sql(&format!(
                    "INSERT INTO epochs (group_id, epoch, epoch_seq, group_info, group_state_hash, tree_width, void_at) \
                     SELECT '\\x{first}', 1000 + n, 1000 + n, '', '', 1, 'epoch' FROM generate_series(1, 120) AS n; \
                     UPDATE epochs SET void_at = 'epoch'::timestamptz + interval '1 second' WHERE epoch_seq BETWEEN 2 AND 999"
                ))
                .await;
            }
            "revocations" => self.world.revoke(&self.devices[2]).await,
            other => panic!("what does {other} do?"),
        }
    }
}

/// A Commit that changes nobody.
async fn commit(world: &World, group: &mut Group, [a, b, c]: &[Device; 3]) {
    let tree = forge::tree(&[a, b, c], u8::try_from(group.seq).unwrap());
    let request = group.commit(group.info(&[], &[]), &[], &tree);
    let result = submit(world, a, request).await.unwrap();
    group.accepted(&result, tree);
}

async fn until_done(name: &'static str, item: &str) {
    let done = async {
        while !fault::is_done(name, item) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let what = format!("{name}: {item} was never done");
    tokio::time::timeout(SOON, done).await.expect(&what);
}

/// Every loop over groups. Those that go by the groups' ids would never come to the second if the first ended them.
const LOOPS: [&str; 5] = ["requests", "warming", "retention", "voids", "revocations"];

#[tokio::test]
async fn a_group_that_fails_holds_up_no_other() {
    let mut two = Two::new().await;
    let ids = two.groups.each_ref().map(|group| hex::encode(&group.id));
    let [first, second] = &ids;
    for name in LOOPS {
        let mut turns = vec![(first, second)];
        // The polls take the groups in an order of their own.
        if ["requests", "warming"].contains(&name) {
            turns.push((second, first));
        }
        for (broken, other) in turns {
            fault::break_item(name, broken);
            two.begin(name).await;
            until_done(name, other).await;
            assert!(!fault::is_done(name, broken), "{name}");
            fault::mend();
            until_done(name, broken).await;
        }
    }
    assert_eq!(
        fault::loops(),
        BTreeSet::from(LOOPS),
        "a loop without a row"
    );
}
