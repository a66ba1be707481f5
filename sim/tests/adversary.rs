//! A hostile member with full keys: each kind of object once, and a few repairs undone that it must find.

use sim::adversary::{
    Sums,
    grammar::held,
    mutants::{HUNTS, find},
    play,
};

/// Every second kind: two tests play all of them at the same time.
fn every_second_kind(from: usize) {
    let mut sums = Sums::default();
    let kinds = (0..).zip(held()).skip(from).step_by(2);
    for (seed, kind) in kinds.clone() {
        let outcome = play(seed, Some(kind)).unwrap_or_else(|error| panic!("{seed}: {error:#}"));
        let story = outcome.story.join("\n");
        assert!(
            outcome.good(),
            "repeat it with: ./dev simulate --adversary --seeds 1 --first {seed} --kind \"{}\"\n{story}\n{:#?}",
            kind.name(),
            (
                &outcome.bricked,
                &outcome.misattributed,
                &outcome.honest_blamed
            ),
        );
        sums.add(seed, &outcome);
    }
    let never = sums.never();
    for (_, kind) in kinds {
        assert!(
            !never.contains(&kind.name()),
            "never emitted: {}",
            kind.name()
        );
    }
}

#[test]
fn no_kind_of_object_stops_the_honest_ones() {
    every_second_kind(0);
}

#[test]
fn nor_does_any_of_the_others() {
    every_second_kind(1);
}

#[test]
fn repairs_that_are_undone_are_missed() {
    for hunt in HUNTS.iter().filter(|hunt| hunt.short) {
        let found = find(hunt).unwrap_or_else(|error| panic!("{hunt:?}: {error:#}"));
        assert!(found.is_some(), "nobody noticed {hunt:?}");
    }
}
