//! A hostile member with full keys, and a hostile Delivery Service: each kind of object once, and repairs undone that it must find.

use sim::adversary::{
    Sums,
    grammar::{Ground, Kind, held},
    mutants::{HUNTS, find},
    play,
};

/// After these there is nothing more to emit, or nobody to aim at.
const ALONE: [Kind; 3] = [Kind::LeaveAndStay, Kind::MessageMoved, Kind::ProposeRemove];

/// Which kinds are emitted in one seed: two of the same kind of group.
fn seeds() -> Vec<Vec<Kind>> {
    let grounds = [Ground::Usual, Ground::Wide, Ground::Closed];
    let of_ground = |ground| held().filter(move |kind| kind.ground() == ground);
    let pairs = grounds.into_iter().flat_map(|ground| {
        let together: Vec<Kind> = of_ground(ground).filter(|k| !ALONE.contains(k)).collect();
        together.chunks(2).map(<[Kind]>::to_vec).collect::<Vec<_>>()
    });
    pairs.chain(ALONE.map(|kind| vec![kind])).collect()
}

/// One seed, in which nothing may be wrong.
fn plays(seed: u64, kinds: &[Kind], sums: &mut Sums) {
    let outcome = play(seed, kinds).unwrap_or_else(|error| panic!("{seed}: {error:#}"));
    let story = outcome.story.join("\n");
    let faults = &outcome.faults;
    assert!(
        outcome.good(),
        "seed {seed}, {kinds:?}\n{story}\n{faults:#?}"
    );
    sums.add(seed, &outcome);
}

/// Every second seed: two tests play all of them at the same time. What could not be made beside another kind has a seed of its own.
fn every_second_seed(from: usize) {
    let mut sums = Sums::default();
    let seeds = || (0..).zip(seeds()).skip(from).step_by(2);
    for (seed, kinds) in seeds() {
        plays(seed, &kinds, &mut sums);
    }
    for kind in seeds().flat_map(|(_, kinds)| kinds) {
        if !sums.objects.contains_key(kind.name()) {
            plays(0, &[kind], &mut sums);
        }
        let emitted = sums.objects.contains_key(kind.name());
        assert!(emitted, "never emitted: {}", kind.name());
    }
}

#[test]
fn no_kind_of_object_stops_the_honest_ones() {
    every_second_seed(0);
}

#[test]
fn nor_does_any_of_the_others() {
    every_second_seed(1);
}

#[test]
fn repairs_that_are_undone_are_missed() {
    for hunt in HUNTS.iter().filter(|hunt| hunt.short) {
        let found = find(hunt).unwrap_or_else(|error| panic!("{hunt:?}: {error:#}"));
        assert!(found.is_some(), "nobody noticed {hunt:?}");
    }
}

#[test]
fn there_is_a_hunt_for_twenty_mutants_and_each_is_hunted_once() {
    let mut hunted: Vec<String> = HUNTS.iter().map(|h| format!("{:?}", h.mutant())).collect();
    hunted.sort();
    hunted.dedup();
    assert!(hunted.len() >= 20 && hunted.len() == HUNTS.len());
}
