//! The `mls_client` protocol for real: servers as processes, scripts between them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use interop::{
    report::{Outcome, Run},
    runner::{
        peers::{Peer, Source},
        play::{self, Options},
        script::Script,
    },
};
use rustix::process::{Pid, Signal, kill_process};

const WAIT: Duration = Duration::from_secs(30);

async fn peers() -> Vec<Peer> {
    let mut peers = Vec::new();
    for stack in ["openmls", "mls-rs"] {
        let program = env!("CARGO_BIN_EXE_interop").into();
        let source = Source::Own { program, stack };
        peers.push(Peer::new(stack, source, WAIT).await.unwrap());
    }
    peers
}

fn options(suite: u16, cap: usize) -> Options {
    Options {
        suites: vec![suite],
        handshakes: vec![true, false],
        cap,
        seed: 1,
        wait: WAIT,
        expect: true,
    }
}

fn scripts(only: &[&str]) -> Vec<Script> {
    let mut scripts = play::scripts(60, 3).unwrap();
    scripts.retain(|script| only.iter().any(|name| script.name.starts_with(name)));
    assert!(scripts.len() >= only.len());
    scripts
}

async fn all_as_expected(only: &[&str], suite: u16, cap: usize) {
    let mut peers = peers().await;
    let played = play::play(&mut peers, &scripts(only), &options(suite, cap), |_| {})
        .await
        .unwrap();
    let wrong = |run: &&Run| matches!(run.outcome, Outcome::Failed(_) | Outcome::Unexpected(_));
    let wrong: Vec<&Run> = played.runs.iter().filter(wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(played.runs.iter().any(|run| run.outcome == Outcome::Passed));
    assert!(played.unchecked.is_empty(), "{:?}", played.unchecked);
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_and_committing_in_every_assignment_of_two() {
    all_as_expected(
        &["welcome/with_psk", "commit/external_psk", "external/alone"],
        2,
        4,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_from_outside_and_new_groups() {
    all_as_expected(
        &["outside/", "reinit/other_suite", "branch/whole_group"],
        1,
        2,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_walk() {
    all_as_expected(&["random walk/"], 1, 3).await;
}

/// The server of the first run is gone: that run failed, and the next ones have a fresh one.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_server_is_replaced() {
    let mut peers = peers().await;
    let victim = peers.first().unwrap().process().unwrap();
    let pid = Pid::from_raw(victim.try_into().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let scripts = scripts(&["welcome/pathless"]);
    let played = play::play(&mut peers, &scripts, &options(1, 4), |_| {})
        .await
        .unwrap();
    let outcomes: Vec<&Outcome> = played.runs.iter().map(|run| &run.outcome).collect();
    assert!(matches!(outcomes[0], Outcome::Failed(_)), "{outcomes:#?}");
    assert!(
        outcomes[1..]
            .iter()
            .all(|outcome| **outcome == Outcome::Passed),
        "{outcomes:#?}"
    );
}

/// A Commit that is not what was asked for, a lie about who is in: a checker that has never failed proves nothing.
#[test]
fn the_checks_see_what_is_wrong() {
    use interop::{
        mls_client::{
            openmls_peer::OpenMlsPeer,
            peer::Peer as _,
            proto::{
                CommitRequest, CreateGroupRequest, CreateKeyPackageRequest, ProposalDescription,
            },
        },
        runner::check::{self, Effect, Expected},
    };
    let peer = OpenMlsPeer::default();
    let create = CreateGroupRequest {
        group_id: vec![1],
        cipher_suite: 1,
        encrypt_handshake: false,
        identity: b"anna".to_vec(),
    };
    let state_id = peer.create_group(create).unwrap().state_id;
    let package = CreateKeyPackageRequest {
        cipher_suite: 1,
        identity: b"ben".to_vec(),
    };
    let add = ProposalDescription {
        proposal_type: b"add".to_vec(),
        key_package: peer.create_key_package(package).unwrap().key_package,
        ..ProposalDescription::default()
    };
    let request = CommitRequest {
        state_id,
        by_value: vec![add],
        external_tree: true,
        ..CommitRequest::default()
    };
    let made = peer.commit(request).unwrap();
    let add = [Effect::Add("ben".into())];
    let expected = |by_value, by_reference, force_path| Expected {
        by_value,
        by_reference,
        force_path,
    };
    assert_eq!(
        check::commit(&made.commit, false, expected(&add, &[], false)),
        Ok(())
    );
    assert!(check::commit(&made.commit, true, expected(&add, &[], false)).is_err());
    assert!(check::commit(&made.commit, false, expected(&[Effect::Psk], &[], false)).is_err());
    assert!(check::commit(&made.commit, false, expected(&add, &add, false)).is_err());
    assert!(check::commit(&made.commit, false, expected(&add, &[], true)).is_err());
    assert_eq!(check::welcome(&made.welcome, 1), Ok(()));
    assert!(check::welcome(&made.welcome, 2).is_err());
    assert!(check::welcome(&made.welcome, 0).is_err());
    assert!(check::external_commit(&made.commit, 0, false).is_err());
    assert_eq!(check::members(&made.ratchet_tree).unwrap(), ["anna", "ben"]);
}
