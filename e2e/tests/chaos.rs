//! The running system under fire, in short; and every server that is broken on purpose, caught.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use e2e::chaos::{self, Options, check::Counts, double::Broken};

/// Each run wants the machine for itself.
static MACHINE: Mutex<()> = Mutex::new(());

fn machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder() -> tempfile::TempDir {
    let prefixed = tempfile::Builder::new().prefix("chancery-chaos-").tempdir();
    prefixed.unwrap()
}

#[test]
fn twenty_faults_cost_nothing() {
    let _machine = machine();
    let folder = folder();
    let run = chaos::play(folder.path(), &Options::whole(20, 1)).unwrap();
    let verdict = &run.verdict;
    if !verdict.findings.is_empty() {
        let kept = folder.keep();
        panic!("{:#?}, kept: {}", verdict.findings, kept.display());
    }
    assert_eq!(run.done.faults, 20);
    assert!(verdict.counts.acknowledged >= 20, "{verdict:?}");
    assert!(verdict.counts.members_agree);
}

/// Whether a broken server does harm in one run is a matter of how processes interleave; in so many it does.
const RUNS: u64 = 16;

/// The checker finds what this server does, and the server did it.
fn caught(broken: Broken, faults: u64, figure: impl Fn(&Counts) -> u64) {
    let _machine = machine();
    let mut seen = Vec::new();
    for seed in 1..=RUNS {
        let folder = folder();
        let run = chaos::play(folder.path(), &Options::broken(broken, faults, seed)).unwrap();
        assert_eq!(run.unused, Vec::<&str>::new(), "it was not broken at all");
        if figure(&run.verdict.counts) > 0 {
            return;
        }
        seen.push(run.verdict.counts);
    }
    panic!("never caught: {seen:#?}");
}

#[test]
fn a_server_that_forgets_idempotency_is_caught() {
    caught(Broken::ForgetsIdempotency, 10, |counts| counts.duplicated);
}

#[test]
fn a_server_that_skips_the_row_lock_is_caught() {
    caught(Broken::SkipsTheRowLock, 20, |counts| counts.reordered);
}

#[test]
fn a_server_that_believes_what_it_remembers_is_caught() {
    caught(Broken::TrustsItsMemory, 20, |counts| counts.reordered);
}

#[test]
fn a_server_that_locks_and_reads_in_one_statement_is_caught() {
    caught(Broken::LocksAndReadsAtOnce, 20, |counts| counts.duplicated);
}

#[test]
fn a_server_that_acknowledges_before_commit_is_caught() {
    caught(Broken::AcknowledgesEarly, 25, |counts| counts.lost);
}

#[test]
fn a_server_that_wakes_and_skips_a_row_is_caught() {
    caught(Broken::SkipsARow, 15, |counts| counts.lost);
}

#[test]
fn a_server_that_sells_a_key_package_twice_is_caught() {
    caught(Broken::SellsTwice, 10, |counts| counts.double_claims);
}
