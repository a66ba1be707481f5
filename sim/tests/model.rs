//! Small worlds explored completely, in the size that a test may have; `./dev explore` does more. And worlds that are broken on purpose.

use sim::model::{Bounds, Broken, TWO, explore};

/// Two devices race; every kind of trouble but a crash.
const SMALL: Bounds = Bounds {
    commits: 1,
    doubles: 0,
    crashes: 0,
    ..TWO
};

fn assert_sound(name: &str, bounds: Bounds) {
    let explored = explore(name, bounds);
    assert!(explored.faults.is_empty(), "{explored:?}");
    assert!(explored.states > 1_000, "{explored:?}");
}

#[test]
fn two_devices_race_and_requests_are_lost_and_repeated() {
    assert_sound("race", SMALL);
}

#[test]
fn nodes_crash_between_commit_and_answer() {
    let bounds = Bounds {
        messages: 0,
        doubles: 1,
        crashes: 1,
        ..SMALL
    };
    assert_sound("crash", bounds);
}

#[test]
fn one_comes_back_from_outside() {
    let bounds = Bounds {
        losses: 0,
        resyncs: true,
        ..SMALL
    };
    assert_sound("resync", bounds);
}

#[test]
fn one_is_revoked() {
    let bounds = Bounds {
        losses: 0,
        revocations: true,
        ..SMALL
    };
    assert_sound("revocation", bounds);
}

#[test]
fn one_of_three_is_removed() {
    let bounds = Bounds {
        devices: 3,
        messages: 0,
        losses: 0,
        removals: true,
        ..SMALL
    };
    assert_sound("removal", bounds);
}

/// Each of these must be found: a checker that never fails proves nothing.
#[test]
fn what_is_broken_on_purpose_is_found() {
    for broken in [
        Broken::ForgetsIds,
        Broken::TakesAnyEpoch,
        Broken::ReadsOn,
        Broken::GivesNumbersTwice,
        Broken::NoBarrier,
        Broken::GivesUp,
        Broken::MergesEarly,
    ] {
        let bounds = match broken {
            Broken::ReadsOn => Bounds {
                devices: 3,
                messages: 0,
                losses: 0,
                removals: true,
                ..SMALL
            },
            Broken::NoBarrier => Bounds {
                losses: 0,
                retries: 0,
                revocations: true,
                ..SMALL
            },
            _ => SMALL,
        };
        let broken = Bounds {
            broken: Some(broken),
            ..bounds
        };
        let explored = explore("broken", broken);
        let caught = |fault: &&String| !fault.starts_with("it never happens");
        let found = explored.faults.iter().find(caught);
        assert!(found.is_some(), "{broken:?} was not found");
    }
}
