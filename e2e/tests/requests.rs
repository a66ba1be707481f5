//! Spoilt requests at running services: every answer is typed, and others do not notice. `./dev requests` sends more.

use e2e::{programs::Programs, requests};

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_is_answered_and_others_do_not_notice() {
    let folder = tempfile::tempdir().unwrap();
    let programs = Programs::find().unwrap();
    let summary = requests::round(&programs, folder.path(), 3_000, 1)
        .await
        .unwrap();
    assert!(summary.faults.is_empty(), "{:#?}", summary.faults);
    // Most methods must have done something, or these were all refused at the door.
    let some_ok = |codes: &std::collections::BTreeMap<String, usize>| codes.contains_key("Ok");
    let reached = summary
        .answers
        .values()
        .filter(|codes| some_ok(codes))
        .count();
    assert!(
        reached * 2 > summary.answers.len(),
        "{:#?}",
        summary.answers
    );
}
