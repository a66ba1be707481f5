//! What a member may put beside or into a Commit, well framed and well signed, and what the server sees of it without keys: each is refused with its
//! reason, nothing is written, and the good one is accepted afterwards.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::*,
    policy::{ExternalJoin, Policy},
    wire::Write as _,
};
use support::{
    Group, World, forge,
    forge::{Device, External},
    log, reason, submit,
    trio::Trio,
};
use uuid::Uuid;

/// A GroupInfo as a member may make it: every part bent by the test, signed with its own key unless the test spoils that.
struct Info {
    suite: u8,
    epoch: u64,
    policy: Policy,
    external_pubs: usize,
    signer: u32,
    spoilt: bool,
}

impl Info {
    fn of(group: &Group) -> Self {
        Self {
            suite: 1,
            epoch: group.epoch + 1,
            policy: group.policy.clone(),
            external_pubs: 1,
            signer: 0,
            spoilt: false,
        }
    }

    fn signed_by(&self, by: &Device, group: &Group, tree: &chancery_proto::tree::Tree) -> Vec<u8> {
        let mut context = forge::group_context(&group.id, self.epoch, tree, &self.policy);
        context[3] = self.suite;
        let mut extensions = Vec::new();
        for _ in 0..self.external_pubs {
            let mut key = Vec::new();
            key.put_vector(&[6; 32]);
            extensions.put(&4u16.to_be_bytes());
            extensions.put_vector(&key);
        }
        let mut signed = context;
        signed.put_vector(&extensions);
        signed.put_vector(&[7; 32]);
        signed.put(&self.signer.to_be_bytes());
        let mut signature = by.sign_with_label("GroupInfoTBS", &signed);
        signature[0] ^= u8::from(self.spoilt);
        let mut message = vec![0, 1, 0, 4];
        message.put(&signed);
        message.put_vector(&signature);
        message
    }
}

type Bend = fn(&mut Info);

/// What no GroupInfo of a new epoch may say, and the reason of the refusal.
const GROUP_INFOS: [(&str, Bend, Reason); 10] = [
    (
        "a spoilt signature",
        |i| i.spoilt = true,
        Reason::GroupInfoMismatch,
    ),
    (
        "another member's place",
        |i| i.signer = 1,
        Reason::GroupInfoMismatch,
    ),
    (
        "a place that is blank",
        |i| i.signer = 3,
        Reason::GroupInfoMismatch,
    ),
    (
        "a place beyond the tree",
        |i| i.signer = u32::MAX,
        Reason::GroupInfoMismatch,
    ),
    ("another suite", |i| i.suite = 3, Reason::GroupInfoMismatch),
    (
        "an epoch later",
        |i| i.epoch += 1,
        Reason::GroupInfoMismatch,
    ),
    (
        "a larger window",
        |i| i.policy.past_epochs = 9,
        Reason::GroupInfoMismatch,
    ),
    (
        "no external joins",
        |i| i.policy.external_join = ExternalJoin::None,
        Reason::GroupInfoMismatch,
    ),
    (
        "no external_pub",
        |i| i.external_pubs = 0,
        Reason::GroupInfoMismatch,
    ),
    (
        "external_pub twice",
        |i| i.external_pubs = 2,
        Reason::Malformed,
    ),
];

#[tokio::test]
async fn a_false_group_info_is_not_stored() {
    let mut trio = Trio::new().await;
    let before = log(&trio.world, &trio.bob, &trio.group)
        .await
        .unwrap()
        .len();
    let tree = forge::tree(&[&trio.alice, &trio.bob, &trio.carol], 31);
    let good = || trio.group.commit(trio.group.info(&[], &[]), &[], &tree);
    for (what, bend, expected) in GROUP_INFOS {
        let mut info = Info::of(&trio.group);
        bend(&mut info);
        let mut request = good();
        request.bundles[0].group_info = info.signed_by(&trio.alice, &trio.group, &tree).into();
        let refused = submit(&trio.world, &trio.alice, request).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{what}: {}", refused.message());
    }
    assert_eq!(
        log(&trio.world, &trio.bob, &trio.group)
            .await
            .unwrap()
            .len(),
        before
    );
    let result = submit(&trio.world, &trio.alice, good()).await.unwrap();
    trio.group.accepted(&result, tree);
}

#[tokio::test]
async fn a_group_is_not_made_with_a_false_group_info() {
    let world = World::start(1, &[]).await;
    let alice = world.device(Uuid::new_v4());
    let group = Group {
        id: Uuid::new_v4().as_bytes().repeat(2),
        epoch: 0,
        epoch_seq: 0,
        seq: 0,
        chain: [0; 32],
        tree: forge::tree(&[&alice], 0),
        policy: Policy::for_domain(forge::DOMAIN),
    };
    let create = async |info: &Info| {
        let request = CreateGroupRequest {
            group_info: info.signed_by(&alice, &group, &group.tree).into(),
            ..group.create_request()
        };
        let created = world.client().create_group(world.by(&alice, request)).await;
        created.map(|_| ()).map_err(|status| reason(&status))
    };
    let first = || Info {
        epoch: 0,
        ..Info::of(&group)
    };
    let also: [(&str, Bend, Reason); 3] = [
        (
            "the last epoch number",
            |i| i.epoch = u64::MAX,
            Reason::GroupInfoMismatch,
        ),
        (
            "an epoch of 63 bits",
            |i| i.epoch = 1 << 62,
            Reason::GroupInfoMismatch,
        ),
        (
            "another domain",
            |i| i.policy.home_domain = "elsewhere.example".into(),
            Reason::GroupInfoMismatch,
        ),
    ];
    // Any policy may be chosen, and any first epoch that leaves room for later ones.
    let choices = ["an epoch later", "a larger window", "no external joins"];
    let false_ones = GROUP_INFOS
        .iter()
        .filter(|(what, ..)| !choices.contains(what));
    for (what, bend, expected) in false_ones.chain(&also) {
        let mut info = first();
        bend(&mut info);
        assert_eq!(create(&info).await, Err(*expected), "{what}");
    }
    assert_eq!(create(&first()).await, Ok(()));
}

#[tokio::test]
async fn what_is_added_is_what_was_published() {
    let mut trio = Trio::new().await;
    let dave = trio.world.device(Uuid::from_u128(4));
    let reference = trio.world.publish(&dave).await;
    let leaves = [&trio.alice, &trio.bob, &trio.carol];
    let nodes: Vec<Vec<u8>> = leaves
        .iter()
        .map(|device| device.own_leaf_node(0))
        .collect();
    let published = dave.leaf_node(0);
    let eve = trio.world.device(Uuid::from_u128(5));
    let eves = {
        trio.world.publish(&eve).await;
        eve.leaf_node(0)
    };
    let with = |more: &[&Vec<u8>]| {
        let all: Vec<Vec<u8>> = nodes.iter().chain(more.iter().copied()).cloned().collect();
        forge::tree_of(&all)
    };
    let cases = [
        ("another device's KeyPackage in her name", with(&[&eves])),
        ("one more leaf than is named", with(&[&published, &eves])),
        ("the same leaf twice", with(&[&published, &published])),
        ("no leaf at all", with(&[])),
    ];
    let request = |tree: &chancery_proto::tree::Tree| {
        let info = trio.group.info(&[&dave], &[]);
        trio.group
            .commit(info, std::slice::from_ref(&reference), tree)
    };
    for (what, tree) in cases {
        let refused = submit(&trio.world, &trio.alice, request(&tree)).await;
        assert_eq!(
            reason(&refused.unwrap_err()),
            Reason::TreeMismatch,
            "{what}"
        );
    }
    let tree = with(&[&published]);
    let result = submit(&trio.world, &trio.alice, request(&tree))
        .await
        .unwrap();
    trio.group.accepted(&result, tree);
}

#[tokio::test]
async fn an_external_commit_shows_what_it_does() {
    let mut trio = Trio::new().await;
    let group = trio.group.clone();
    let info = group.info(&[&trio.carol], &[&trio.carol]);
    let leaf = |place| trio.carol.external_leaf(&group.id, place);
    let good = External {
        removes: vec![2],
        leaf: leaf(2),
        ..External::default()
    };
    let mut psk = vec![1, 0, 4, 1];
    psk.put_vector(b"a secret that nobody has");
    psk.put_vector(&[3; 32]);
    let removes = |removes: &[u32]| External {
        removes: removes.to_vec(),
        ..good.clone()
    };
    let cases = [
        ("no Remove", 2, removes(&[]), Reason::CommitInfoInvalid),
        (
            "another's leaf",
            2,
            removes(&[1]),
            Reason::CommitInfoInvalid,
        ),
        (
            "the own leaf and another",
            2,
            removes(&[2, 1]),
            Reason::CommitInfoInvalid,
        ),
        (
            "the own leaf twice",
            2,
            removes(&[2, 2]),
            Reason::CommitInfoInvalid,
        ),
        (
            "a leaf beyond every tree",
            2,
            removes(&[u32::MAX]),
            Reason::CommitInfoInvalid,
        ),
        (
            "a leaf from a KeyPackage",
            2,
            External {
                leaf: trio.carol.package_leaf(),
                ..good.clone()
            },
            Reason::CredentialInvalid,
        ),
        (
            "a leaf signed for another place",
            2,
            External {
                leaf: leaf(1),
                ..good.clone()
            },
            Reason::CredentialInvalid,
        ),
        (
            "a place that is not the leftmost blank one",
            3,
            External {
                leaf: leaf(3),
                ..good.clone()
            },
            Reason::TreeMismatch,
        ),
        (
            "a PreSharedKey proposal",
            2,
            External {
                more_proposals: psk,
                ..good.clone()
            },
            Reason::Malformed,
        ),
    ];
    for (what, place, external, expected) in cases {
        let (request, _) = group.external(&trio.carol, place, &info, external);
        let refused = submit(&trio.world, &trio.carol, request).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{what}: {}", refused.message());
    }
    // A tree that lets somebody else go besides.
    let (mut request, mut tree) = group.external(&trio.carol, 2, &info, good.clone());
    tree.set(2, None).unwrap();
    let context = group.context(group.epoch + 1, &tree);
    request.bundles[0].group_info = forge::group_info(&context, &tree).into();
    request.bundles[0].tree = Some(tree.update_since(&group.tree));
    let refused = submit(&trio.world, &trio.carol, request).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::TreeMismatch,
        "another's leaf is blank"
    );
    let (request, tree) = group.external(&trio.carol, 2, &info, good);
    let result = submit(&trio.world, &trio.carol, request).await.unwrap();
    trio.group.accepted(&result, tree);
}

#[tokio::test]
async fn a_repair_changes_nothing_that_the_commit_fixed() {
    let mut trio = Trio::new().await;
    trio.commit().await;
    let group = &trio.group;
    let everybody = forge::tree(&[&trio.alice, &trio.bob, &trio.carol], 41);
    let stranger = trio.world.device(Uuid::from_u128(9));
    let put = async |info: &Info, tree: &chancery_proto::tree::Tree| {
        let request = PutGroupInfoRequest {
            group: Some(group.reference()),
            epoch_seq: group.epoch_seq,
            group_info: info.signed_by(&trio.bob, group, tree).into(),
            tree: Some(tree.to_update()),
        };
        let request = trio.world.by(&trio.bob, request);
        let answer = trio.world.client().put_group_info(request).await;
        answer.map(|_| ()).map_err(|status| reason(&status))
    };
    let bobs = |signer| Info {
        epoch: group.epoch,
        signer,
        ..Info::of(group)
    };
    let bends: [(&str, Bend); 4] = [
        ("another suite", |i| i.suite = 3),
        ("a larger window", |i| i.policy.past_epochs = 9),
        ("no external joins", |i| {
            i.policy.external_join = ExternalJoin::None
        }),
        ("no external_pub", |i| i.external_pubs = 0),
    ];
    for (what, bend) in bends {
        let mut info = bobs(1);
        bend(&mut info);
        assert_eq!(
            put(&info, &everybody).await,
            Err(Reason::GroupInfoMismatch),
            "{what}"
        );
    }
    let trees = [
        ("his leaf alone", 0, forge::tree(&[&trio.bob], 1)),
        (
            "without Carol",
            1,
            forge::tree(&[&trio.alice, &trio.bob], 1),
        ),
        (
            "a stranger besides",
            1,
            forge::tree(&[&trio.alice, &trio.bob, &trio.carol, &stranger], 1),
        ),
        (
            "a stranger for Carol",
            1,
            forge::tree(&[&trio.alice, &trio.bob, &stranger], 1),
        ),
    ];
    for (what, signer, tree) in trees {
        assert_eq!(
            put(&bobs(signer), &tree).await,
            Err(Reason::TreeMismatch),
            "{what}"
        );
    }
    assert_eq!(put(&bobs(1), &everybody).await, Ok(()));
}

/// A tree that somebody stored says nothing about the key that a member signs its reports with.
#[tokio::test]
async fn a_report_is_verified_by_the_key_that_its_member_was_let_in_with() {
    let mut trio = Trio::new().await;
    let spoil = "UPDATE tree_nodes SET node = NULL WHERE node_index IN (2, 4)";
    let owner = support::owner(&trio.world).await;
    assert!(owner.execute(spoil, &[]).await.unwrap() > 0);
    let tree = forge::tree(&[&trio.alice, &trio.bob, &trio.carol], 51);
    let request = trio.group.commit(trio.group.info(&[], &[]), &[], &tree);
    let payload = request.bundles[0].commit.to_vec();
    let bad = submit(&trio.world, &trio.alice, request).await.unwrap();
    trio.group.accepted(&bad, tree);
    trio.fails(&trio.bob, bad.seq, &payload).await.unwrap();
    trio.fails(&trio.carol, bad.seq, &payload).await.unwrap();
    let (_, void) = trio.void().await;
    assert_eq!(void.first_seq, bad.seq);
}

#[tokio::test]
async fn whoever_asked_to_leave_goes_with_the_next_commit() {
    let mut trio = Trio::new().await;
    let joined = trio.state(&trio.carol).await;
    let carol = joined
        .members
        .iter()
        .find(|m| m.device.as_ref() == Some(&trio.carol.device_ref()));
    let joined_seq = carol.unwrap().joined_seq;
    let seq = trio.world.leave(&trio.carol, &trio.group, joined_seq).await;
    let entries = log(&trio.world, &trio.bob, &trio.group).await.unwrap();
    let last = entries.last().unwrap();
    assert_eq!(last.seq, seq);
    trio.group.seq = seq;
    trio.group.chain = last.chain.as_ref().try_into().unwrap();
    let tree = forge::tree(&[&trio.alice, &trio.bob, &trio.carol], 61);
    let stays = trio.group.commit(trio.group.info(&[], &[]), &[], &tree);
    let refused = submit(&trio.world, &trio.bob, stays).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PendingRemoval);
    // Messages do not wait for it.
    let sent = support::send(
        &trio.world,
        &trio.bob,
        trio.group.message(Uuid::new_v4(), 1),
    )
    .await;
    trio.group.sent(&sent.unwrap());
    let tree = forge::tree(&[&trio.alice, &trio.bob], 61);
    let goes = trio
        .group
        .commit(trio.group.info(&[], &[&trio.carol]), &[], &tree);
    let result = submit(&trio.world, &trio.bob, goes).await.unwrap();
    trio.group.accepted(&result, tree);
}
