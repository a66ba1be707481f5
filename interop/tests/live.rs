//! A slice of the matrix, in every assignment: the roles in which stacks differ most.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use interop::{
    contract_member::ContractMember,
    engine::{Engine, Identity},
    matrix, node_process,
    report::{Outcome, Run},
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

/// openmls 0.9.2 reads no tree that holds a leaf with a GREASE extension (pinned in `client-cli/tests/leaves.rs`), so
/// the service lets none in; in capabilities alone such values pass (`./dev conformance`).
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_with_a_grease_extension_is_refused_when_it_is_published() {
    if let Some(why) = node_process::missing() {
        eprintln!("SKIPPED: ts-mls: {why}");
        return;
    }
    let world = World::start().await.unwrap();
    let greased = |suite: u16, identity: &Identity<'_>| {
        let engine = TsMls::start(suite, identity)?.with_grease();
        Ok(Box::new(engine) as Box<dyn Engine>)
    };
    let refused = ContractMember::enroll(&world, "greased", 1, greased).await;
    let refused = format!("{:#}", refused.err().unwrap());
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
