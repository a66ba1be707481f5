//! A late joiner by external Commit from the stored GroupInfo and tree: a new device of a member's user, introduced by another one.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use chancery_proto::{
    commit_info::CommitInfo,
    common::v1::{DeviceRef, Reason},
    delivery::v1::{Introduction, SubmitCommitRequest},
    policy::{ExternalJoin, Policy},
    signed,
};
use interop::{
    conformance::{
        expect::refused,
        party::{Party, Plan, SUITE, fresh_id},
    },
    contract::{aad, bundle, members},
    world::World,
};

async fn party(world: &World, handle: &str) -> Party {
    let code = world.invite(handle).await.unwrap();
    Party::enroll(&world.place(), code, handle).await.unwrap()
}

/// An external Commit of `joiner`, on what `member` fetched for it.
async fn external(member: &mut Party, joiner: &mut Party, group: &[u8]) -> SubmitCommitRequest {
    let stored = member.device.group_info(group).await.unwrap();
    let tree = member.device.tree(group, stored.epoch_seq).await.unwrap();
    let id = fresh_id();
    let info = CommitInfo {
        added: members(&joiner.device.domain, [joiner.person()]),
        seen_seq: stored.head_seq,
        seen_chain: stored.chain[..].try_into().unwrap(),
        ..CommitInfo::default()
    };
    let data = aad(id, Some(info));
    let made = joiner
        .engine
        .external(group, &stored.group_info, &tree, &data)
        .unwrap();
    SubmitCommitRequest {
        group: joiner.group(group),
        epoch_seq: stored.epoch_seq,
        bundles: vec![bundle(id, made).unwrap()],
    }
}

/// `by` says that this key is its user's device's.
fn introduction(by: &Party, joiner: &Party, key: &[u8], group: &[u8]) -> Introduction {
    let expires_at = i64::from(u32::MAX);
    let domain = &by.device.domain;
    let content = signed::introduction(
        (domain, joiner.person().device.as_bytes()),
        key,
        (domain, group),
        expires_at,
    );
    let signature = by
        .device
        .leaf_key(SUITE)
        .unwrap()
        .sign(signed::INTRODUCTION, &content);
    Introduction {
        introducer: Some(DeviceRef {
            domain: domain.clone(),
            id: by.person().device.as_bytes().to_vec().into(),
        }),
        expires_at,
        signature: signature.unwrap().into(),
        key: key.to_vec().into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_of_a_members_user_joins_from_outside_when_it_is_introduced() {
    let world = World::start().await.unwrap();
    let (mut phone, mut ben) = (party(&world, "anna").await, party(&world, "ben").await);
    let mut laptop = party(&world, "anna").await;
    assert_eq!(phone.person().user, laptop.person().user);
    let mut stranger = party(&world, "dora").await;
    let policy = Policy {
        external_join: ExternalJoin::SameUser,
        ..Policy::for_domain(&phone.device.domain)
    };
    let group = phone.create_with(&policy).await.unwrap();
    let plan = Plan {
        add: vec![ben.offer().await.unwrap()],
        ..Plan::default()
    };
    phone.commit(&group, &plan, &mut []).await.unwrap();
    ben.join(&group).await.unwrap();

    // Nobody's word, the word of somebody else's device, the word for another user's device, the word for another key.
    let bare = external(&mut phone, &mut laptop, &group).await;
    refused(laptop.submit(bare.clone()).await, &[Reason::Group]).unwrap();
    let key = laptop.device.leaf_key(SUITE).unwrap().public_key.clone();
    let mut of_ben = bare.clone();
    of_ben.bundles[0].introduction = Some(introduction(&ben, &laptop, &key, &group));
    refused(
        laptop.submit(of_ben).await,
        &[Reason::Group, Reason::ProofInvalid],
    )
    .unwrap();
    let mut for_dora = external(&mut phone, &mut stranger, &group).await;
    let her_key = stranger.device.leaf_key(SUITE).unwrap().public_key.clone();
    for_dora.bundles[0].introduction = Some(introduction(&phone, &stranger, &her_key, &group));
    refused(
        stranger.submit(for_dora).await,
        &[Reason::Group, Reason::ProofInvalid],
    )
    .unwrap();
    let mut other_key = bare.clone();
    other_key.bundles[0].introduction = Some(introduction(&phone, &laptop, &her_key, &group));
    refused(laptop.submit(other_key).await, &[Reason::ProofInvalid]).unwrap();

    let mut introduced = bare;
    introduced.bundles[0].introduction = Some(introduction(&phone, &laptop, &key, &group));
    let commit = introduced.bundles[0].commit.to_vec();
    laptop.submit(introduced).await.unwrap();
    for member in [&mut phone, &mut ben] {
        member.engine.process(&group, &commit).unwrap();
    }
    let text = laptop.frame(&group, "here too").await.unwrap();
    let bytes = text.message.to_vec();
    laptop.device.send(text).await.unwrap();
    ben.engine.process(&group, &bytes).unwrap();
    let secrets = |party: &mut Party| party.engine.secrets(&group, "late").unwrap();
    let joined = secrets(&mut laptop);
    for member in [&mut phone, &mut ben] {
        let own = secrets(member);
        assert_eq!(
            (own.epoch, own.authenticator, own.exporter),
            (
                joined.epoch,
                joined.authenticator.clone(),
                joined.exporter.clone()
            )
        );
    }
    world.stop().await.unwrap();
}
