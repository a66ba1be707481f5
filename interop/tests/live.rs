//! A slice of the matrix, in every assignment: the roles in which stacks differ most.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use interop::matrix::{self, Outcome, Run};

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
