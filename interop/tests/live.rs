//! A slice of the matrix, in every assignment: the roles in which stacks differ most.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use interop::{
    contract_member::ContractMember,
    engine::{Engine, Identity},
    matrix, mls_rs_engine, node_process,
    openmls_member::OpenMls,
    report::{Outcome, Run},
    stack::{Change, Stack as _},
    ts_engine::TsMls,
    world::World,
};

async fn all_as_expected(only: &str) {
    let runs = matrix::play(only, |_| {}).await.unwrap();
    let wrong: Vec<&Run> = runs
        .iter()
        .filter(|run| matches!(run.outcome, Outcome::Failed(_) | Outcome::Unexpected(_)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(runs.iter().any(|run| run.outcome == Outcome::Passed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_is_won_once_and_the_loser_goes_on() {
    all_as_expected("race").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_its_state_comes_back_from_outside() {
    all_as_expected("resync from outside").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_is_committed_by_reference() {
    all_as_expected("proposal by reference").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_resort_serves_again_and_again() {
    all_as_expected("last resort").await;
}

/// A conformant KeyPackage with GREASE values passes the server, and mls-rs adds it. openmls 0.9.2 does not (pinned in `client-cli/tests/core.rs`), so our
/// client leaves that device out and says why.
#[tokio::test(flavor = "multi_thread")]
async fn grease_passes_the_server_and_mls_rs_and_our_client_says_why_not() {
    if let Some(why) = node_process::missing() {
        eprintln!("SKIPPED: ts-mls: {why}");
        return;
    }
    let world = World::start().await.unwrap();
    let greased = |suite: u16, identity: &Identity<'_>| {
        let engine = TsMls::start(suite, identity)?.with_grease();
        Ok(Box::new(engine) as Box<dyn Engine>)
    };
    let mut added = ContractMember::enroll(&world, "greased", 1, greased)
        .await
        .unwrap();
    let add = Change {
        add: vec![added.person()],
        ..Change::default()
    };
    let mut adder = ContractMember::enroll(&world, "mls-rs", 1, mls_rs_engine::start)
        .await
        .unwrap();
    let group = adder.create().await.unwrap();
    adder.commit(&group, &add).await.unwrap();
    adder.sync(&group).await.unwrap();
    added.sync(&group).await.unwrap();
    assert_eq!(adder.state(&group).unwrap(), added.state(&group).unwrap());
    let mut openmls = OpenMls::enroll(&world, "openmls", 1).await.unwrap();
    let group = openmls.create().await.unwrap();
    let refused = openmls.commit(&group, &add).await.unwrap_err().to_string();
    assert!(refused.contains("GREASE"), "{refused}");
    world.stop().await.unwrap();
}

/// A fault of ts-mls that its peer works around: when this fails, upstream has mended it, and the workaround goes.
#[test]
fn ts_mls_still_leaves_the_length_out_of_external_pub() {
    if let Some(why) = node_process::missing() {
        eprintln!("SKIPPED: ts-mls: {why}");
        return;
    }
    let identity = Identity {
        certificate: b"x",
        secret: &[7; 32],
        public_key: &[8; 32],
    };
    let mut engine = TsMls::start(1, &identity).unwrap();
    // The key does not matter here: nothing that is signed is verified.
    engine.create(&[9; 32], b"policy").unwrap();
    assert!(!engine.external_pub_has_length(&[9; 32]).unwrap());
}
