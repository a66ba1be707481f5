//! Seeds of the simulation: a few at random, and those that once found something, by what they found.

use sim::simulation::{Sums, play};

fn assert_good(seeds: impl IntoIterator<Item = u64>) -> Sums {
    let mut sums = Sums::default();
    for seed in seeds {
        let played = play(seed).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        assert!(
            played.faults.is_empty(),
            "repeat it with: ./dev simulate --seeds 1 --first {seed}\n{:#?}",
            played.faults
        );
        sums.add(seed, played);
    }
    sums
}

#[test]
fn some_seeds() {
    let sums = assert_good(1_000..1_005);
    for kind in [
        "send",
        "update",
        "requests lost",
        "answers lost",
        "requests twice",
        "crash",
    ] {
        assert!(
            sums.counts[kind] > 0,
            "{kind} never happened: {:?}",
            sums.counts
        );
    }
}

/// A device that was removed and added again read nothing of the end of its first membership.
#[test]
fn a_new_membership_does_not_hide_the_end_of_the_one_before() {
    assert_good([12, 21]);
}

/// A device that was removed and added again took its new Welcome for one that it had used.
#[test]
fn a_welcome_after_a_removal_is_used() {
    assert_good([23]);
}

/// A profile restored from before its Welcome was in the roster and knew of no group.
#[test]
fn a_profile_restored_from_before_it_joined_finds_its_group() {
    assert_good([36]);
}

/// What a bad Commit's maker builds on it took the reporters' voices away, and made the others take the void for a lie.
#[test]
fn what_is_built_on_a_bad_commit_silences_nobody() {
    assert_good([14, 26, 55]);
}

/// After a void nobody committed, and the maker of the voided Commit could not come back.
#[test]
fn the_maker_of_a_voided_commit_comes_back() {
    assert_good([5, 6]);
}

/// A device that was added again (and may learn only now that it was removed) came back from outside before it had used its Welcome, and what was said in between stayed closed to it.
#[test]
fn whoever_comes_back_from_outside_uses_its_welcome_first() {
    assert_good([1073, 1384, 2762]);
}

/// A device gave up its state before it had read what only that state could open.
#[test]
fn whoever_gives_up_its_state_reads_with_it_first() {
    assert_good([1356, 1755]);
}

/// The maker of a voided Commit was the only one who could have settled the next one.
#[test]
fn a_bar_ends_where_nobody_else_could_end_it() {
    assert_good([1359, 1825]);
}
