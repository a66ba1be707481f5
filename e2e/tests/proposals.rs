//! Proposals with real processes: whatever a member proposes, the others speak and commit, they know whose proposal it was, and a revoked proposer goes.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{commit_info::MessageData, delivery::v1::SendMessageRequest, policy};
use client_cli::{
    core::{
        group,
        records::{self, GroupName},
    },
    member::Member,
};
use e2e::programs::run;
use openmls::{prelude::*, schedule::PreSharedKeyId};
use serde_json::Value;
use support::{Fixture, assert_agree, show, texts};
use uuid::Uuid;

/// What an insider proposes in one epoch: every kind that openmls can frame and that is refused where it is received,
/// and what only the server can refuse, in a Commit with it.
const PROPOSED: [&[&str]; 2] = [
    &["psk", "policy", "unknown type", "add of a member"],
    &["unpublished add"],
];

/// The insider's own device once more, in a KeyPackage that no server has seen.
fn key_package(of: &Member) -> KeyPackage {
    of.step(|step, context| {
        let key = context.identity.leaf_key(group::SUITES[0])?;
        let made = KeyPackage::builder()
            .leaf_node_capabilities(group::capabilities())
            .build(group::SUITES[0], step.provider(), &key, key.credential())
            .unwrap();
        Ok(made.key_package().clone())
    })
    .unwrap()
}

fn other_window(mls_group: &MlsGroup) -> Extensions<GroupContext> {
    let policy = policy::Policy {
        past_epochs: 9,
        ..group::policy_of(mls_group.extensions()).unwrap()
    };
    let required = mls_group.extensions().required_capabilities().unwrap();
    let unknown = UnknownExtension(policy.encode());
    Extensions::from_vec(vec![
        Extension::RequiredCapabilities(required.clone()),
        Extension::Unknown(policy::POLICY_EXTENSION, unknown),
    ])
    .unwrap()
}

async fn propose(insider: &Member, name: &GroupName, kind: &str, newcomer: &Member) {
    let id = *Uuid::new_v4().as_bytes();
    let package = match kind {
        "unpublished add" => key_package(newcomer),
        _ => key_package(insider),
    };
    let request = insider
        .step(|step, context| {
            let record = records::known(step, name)?;
            let mut mls_group = group::load(step, name)?;
            let what = match kind {
                "psk" => {
                    let psk = PreSharedKeyId::external(b"nobody has it".to_vec(), vec![7; 32]);
                    Propose::PreSharedKey(psk)
                }
                "policy" => Propose::GroupContextExtensions(other_window(&mls_group)),
                "unknown type" => Propose::Custom(CustomProposal::new(0xF00D, vec![1])),
                _ => Propose::Add(package),
            };
            let data = MessageData {
                message_id: Some(id),
                commit_info: None,
            };
            mls_group.set_aad(data.encode());
            let key = context.identity.leaf_key(mls_group.ciphersuite())?;
            let by_reference = ProposalOrRefType::Reference;
            let (message, _) = mls_group
                .propose(step.provider(), &key, what, by_reference)
                .unwrap();
            Ok(SendMessageRequest {
                group: Some(name.to_ref()),
                message_id: id.to_vec().into(),
                message: message.to_bytes().unwrap().into(),
                epoch_seq: record.epoch_seq,
                ..SendMessageRequest::default()
            })
        })
        .unwrap();
    insider
        .delivery(request, async |mut client, request| {
            Ok(client.send_message(request).await?.into_inner())
        })
        .await
        .unwrap();
}

/// In its presence the others speak and commit; and with another one of it a revocation is carried out.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_proposed_stops_a_group_or_saves_its_proposer() {
    let fixture = Fixture::start();
    let [a, b, newcomer] = ["a", "b", "newcomer"].map(|name| fixture.device(name));
    let newcomer = fixture.member(&newcomer).await;
    for (n, kinds) in PROPOSED.iter().enumerate() {
        let i = fixture.device(&format!("insider-{n}"));
        let (_, group) = a.create_group([&b, &i]).unwrap();
        for device in [&b, &i] {
            device.run(&["sync"]).unwrap();
        }
        let name: GroupName = group.parse().unwrap();
        let insider = fixture.member(&i).await;
        for kind in *kinds {
            propose(&insider, &name, kind, &newcomer).await;
        }
        b.run(&["sync"]).unwrap();
        let proposed = show(&b, &group)["proposals"].clone();
        let proposers: Vec<&Value> = proposed
            .as_array()
            .unwrap()
            .iter()
            .map(|p| &p["proposer"])
            .collect();
        assert_eq!(proposers, vec![i.uri.as_str(); kinds.len()], "{proposed}");
        a.run(&["send", "--group", &group, "in its presence"])
            .unwrap();
        b.run(&["group", "update", "--group", &group]).unwrap();
        assert_agree(&[&a, &b], &group);
        assert_eq!(show(&b, &group)["proposals"], serde_json::json!([]));
        // Its own proposals came back to it: it is out of step, and comes in again with its next ones.
        insider.rejoin_by_hand(&name).await.unwrap();
        for kind in *kinds {
            propose(&insider, &name, kind, &newcomer).await;
        }
        let words = ["devices", "revoke", &i.uri];
        let revoked = run(&mut fixture.server.operator(0, &words)).unwrap();
        revoked.ok("the operator's command").unwrap();
        let started = std::time::Instant::now();
        while show(&b, &group)["members"].as_array().unwrap().len() != 2 {
            assert!(
                started.elapsed().as_secs() < 60,
                "{kinds:?}: it was not removed"
            );
            b.run(&["group", "update", "--group", &group]).unwrap();
        }
        b.run(&["send", "--group", &group, "without it"]).unwrap();
        assert_agree(&[&a, &b], &group);
        assert_eq!(texts(&a, &group), ["in its presence", "without it"]);
    }
}
