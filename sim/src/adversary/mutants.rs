//! Repairs undone: the adversary has to notice each of them.

use chancery_proto::mutants::{
    self,
    Mutant::{self, *},
};

use super::{
    fault::Class::{self, *},
    grammar::Kind,
    play_until,
};

/// How a mutant is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Hunt {
    /// What is undone: the first is what is looked for, the others are lines of defence that would hold without it.
    pub mutants: &'static [Mutant],
    /// Objects whose name begins with this text are emitted.
    pub kinds: &'static str,
    /// It must be found within so many seeds.
    pub seeds: u64,
    /// What it is found by. With the other mutants alone nothing of this class may be wrong.
    pub by: Class,
    /// It is looked for in each run of the tests, not only in the long form.
    pub short: bool,
}

impl Hunt {
    /// The mutant that is looked for.
    pub fn mutant(&self) -> Mutant {
        self.mutants[0]
    }
}

const fn hunt(
    mutants: &'static [Mutant],
    kinds: &'static str,
    by: Class,
    seeds: u64,
    short: bool,
) -> Hunt {
    Hunt {
        mutants,
        kinds,
        seeds,
        by,
        short,
    }
}

const LONG: bool = false;
const SHORT: bool = true;

/// The mutants that the adversary finds. What else is undone in `proto/src/mutants.rs` is missed by tests of its own.
pub const HUNTS: &[Hunt] = &[
    // What the service must refuse, by name.
    hunt(
        &[ServerTakesChangedPolicy],
        "GroupInfo: another policy",
        Answer,
        2,
        SHORT,
    ),
    hunt(
        &[GroupInfoUnverified],
        "GroupInfo: a spoilt",
        Answer,
        2,
        SHORT,
    ),
    hunt(
        &[ExternalCommitUnread],
        "external Commit: ",
        Answer,
        4,
        SHORT,
    ),
    hunt(
        &[RepairUncompared],
        "PutGroupInfo: another suite",
        Answer,
        2,
        SHORT,
    ),
    hunt(&[AddedLeafUncompared], "leaf: ", Answer, 2, SHORT),
    hunt(
        &[LeavingStaysAtServer],
        "Commit: leaves somebody in",
        Answer,
        2,
        LONG,
    ),
    hunt(&[HpkeKeyFormUnchecked], "KeyPackage: an ", Answer, 3, SHORT),
    hunt(
        &[KeyPackageRulesUnchecked],
        "KeyPackage: init_key and",
        Answer,
        2,
        LONG,
    ),
    hunt(
        &[LeafRulesUnchecked],
        "KeyPackage: capabilities",
        Answer,
        2,
        LONG,
    ),
    hunt(
        &[GreaseExtensionTaken],
        "KeyPackage: a leaf extension",
        Answer,
        2,
        LONG,
    ),
    hunt(
        &[TreeNodeUnparsed],
        "tree: a node that is no",
        Answer,
        2,
        LONG,
    ),
    hunt(
        &[WelcomeSuiteUnchecked],
        "Welcome: of another suite",
        Answer,
        2,
        LONG,
    ),
    // Reports that no leaf of the stored tree verifies: a spoilt Commit stands for ever. The tree is put there only where it is not compared, and the
    // Commit that says its whole tree stands on it only where added leaves are not.
    hunt(
        &[ReportKeyFromTree, RepairUncompared, AddedLeafUncompared],
        "PutGroupInfo: a tree of its own leaf alone, and",
        NotTakenBack,
        6,
        LONG,
    ),
    // What members judge.
    hunt(&[ProposalsUnjudged], "proposal: ", Unnamed, 12, LONG),
    hunt(
        &[ProposalConflictsKept],
        "proposal: a Remove",
        Stuck,
        6,
        LONG,
    ),
    hunt(
        &[RefusedProposalsKept],
        "proposal: an Add by a KeyPackage",
        Stuck,
        6,
        LONG,
    ),
    hunt(
        &[ProposalsStayQueued],
        "proposal: an Add by a KeyPackage",
        Stuck,
        24,
        LONG,
    ),
    // The own Commit is looked at for what was not judged when it came, and the service refuses another policy too.
    hunt(
        &[
            OwnCommitUnchecked,
            ProposalsUnjudged,
            ServerTakesChangedPolicy,
        ],
        "proposal: GroupContextExtensions",
        HonestBlamed,
        12,
        LONG,
    ),
    // The service stores no GroupInfo of another policy, so that nobody meets one.
    hunt(
        &[ReturnPolicyUnchecked, ServerTakesChangedPolicy],
        "PutGroupInfo: another policy",
        HonestBlamed,
        12,
        LONG,
    ),
    hunt(
        &[SenderByCurrentLeaf],
        "message: framed at a leaf",
        Misattributed,
        4,
        LONG,
    ),
    // The service takes no added leaf that no KeyPackage of its stock has.
    hunt(
        &[ForeignAuthorityTaken, AddedLeafUncompared],
        "leaf: ",
        Merged,
        6,
        LONG,
    ),
    hunt(
        &[
            UnverifiedLeafSilences,
            ForeignAuthorityTaken,
            AddedLeafUncompared,
        ],
        "leaf: ",
        Stuck,
        6,
        LONG,
    ),
    // The service does not look at keys of parent nodes, and every member does.
    hunt(
        &[CommitParentsUnchecked],
        "Commit: a key of its path",
        Merged,
        6,
        LONG,
    ),
    hunt(&[LeavingStays], "leave: ", StillIn, 6, SHORT),
    hunt(
        &[UnusableWelcomeKept],
        "service: has a Welcome",
        Stuck,
        4,
        LONG,
    ),
    // What was before: restores, and a service that does not mean well.
    hunt(&[OldLeaveHonoured], "service: repeats", Evicted, 4, SHORT),
    hunt(
        &[UnknownGroupIsARefusal],
        "service: forgets",
        Stuck,
        4,
        LONG,
    ),
    hunt(
        &[LeftOutForgotten],
        "service: gives out no",
        LeftOut,
        4,
        LONG,
    ),
    hunt(
        &[ClaimedKeyPackagesUnchecked],
        "service: gives out a bent",
        LeftOut,
        4,
        LONG,
    ),
    hunt(
        &[IncarnationIgnored],
        "service: gives out KeyPackages again",
        Resold,
        4,
        LONG,
    ),
    hunt(&[UsedLastResortStays], "claim: ", Resold, 4, SHORT),
    hunt(
        &[WelcomeKnownByHead],
        "service: keeps a Welcome",
        Stuck,
        4,
        LONG,
    ),
];

/// How a mutant was found.
#[derive(Debug)]
pub struct Found {
    /// By this seed.
    pub seed: u64,
    /// With objects of this kind.
    pub kind: Kind,
    /// What was wrong.
    pub fault: String,
}

/// Plays seeds with a mutant until it is found. Then the same seed is played with the other mutants alone: what is found must be the mutant's doing.
///
/// # Errors
/// The simulation cannot go on, or the fault is there without the mutant.
pub fn find(hunt: &Hunt) -> anyhow::Result<Option<Found>> {
    let wanted = |kind: &&Kind| kind.name().starts_with(hunt.kinds);
    let kinds: Vec<Kind> = Kind::ALL.iter().filter(wanted).copied().collect();
    anyhow::ensure!(
        !kinds.is_empty(),
        "no kind of object is named {:?}",
        hunt.kinds
    );
    for seed in 0..hunt.seeds {
        let kind = kinds[usize::try_from(seed)? % kinds.len()];
        let with = |undone: &[Mutant]| {
            mutants::set_all(undone);
            let outcome = play_until(seed, &[kind], Some(hunt.by));
            mutants::set_all(&[]);
            outcome.map(|outcome| outcome.first(hunt.by).cloned())
        };
        let Some(fault) = with(hunt.mutants)? else {
            continue;
        };
        let without = with(&hunt.mutants[1..])?;
        anyhow::ensure!(
            without.is_none(),
            "{:?}, seed {seed}: {without:?} is wrong without it",
            hunt.mutant(),
        );
        let fault = fault.text;
        return Ok(Some(Found { seed, kind, fault }));
    }
    Ok(None)
}
