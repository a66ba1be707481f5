//! Repairs undone one at a time: the adversary has to notice each of them.

use chancery_proto::mutants::{self, Mutant};

use super::{Outcome, grammar::Kind, play};

/// How a mutant is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Hunt {
    /// What is undone.
    pub mutant: Mutant,
    /// Objects whose name holds this text are emitted; the empty text is all of them.
    pub kinds: &'static str,
    /// It must be found within so many seeds.
    pub seeds: u64,
    /// It is looked for in each run of the tests, not only in the long form.
    pub short: bool,
}

const fn hunt(mutant: Mutant, kinds: &'static str, seeds: u64, short: bool) -> Hunt {
    Hunt {
        mutant,
        kinds,
        seeds,
        short,
    }
}

/// The mutants that the adversary finds. What else is undone in `proto/src/mutants.rs` is missed by tests of its own, or a second line
/// of defence holds where the first one is gone.
pub const HUNTS: &[Hunt] = &[
    hunt(
        Mutant::RepairUncompared,
        "PutGroupInfo: another suite",
        6,
        true,
    ),
    hunt(
        Mutant::ExternalCommitUnread,
        "external Commit: removes",
        12,
        false,
    ),
];

/// The seed by which a mutant was found, if it was.
///
/// # Errors
/// The simulation cannot go on.
pub fn find(hunt: &Hunt) -> anyhow::Result<Option<(u64, Outcome)>> {
    let wanted = |kind: &&Kind| kind.name().contains(hunt.kinds);
    let kinds: Vec<Kind> = Kind::ALL.iter().filter(wanted).copied().collect();
    anyhow::ensure!(
        !kinds.is_empty(),
        "no kind of object is named {:?}",
        hunt.kinds
    );
    mutants::set(Some(hunt.mutant));
    let mut found = None;
    for seed in 0..hunt.seeds {
        let kind = kinds[usize::try_from(seed)? % kinds.len()];
        let outcome = play(seed, Some(kind))?;
        if !outcome.good() {
            found = Some((seed, outcome));
            break;
        }
    }
    mutants::set(None);
    Ok(found)
}
