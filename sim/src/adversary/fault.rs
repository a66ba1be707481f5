//! What may be wrong after a seed.

/// A kind of wrong, so that a hunt can say by which one a mutant is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The service took what it must refuse, or refused for another reason than it must.
    Answer,
    /// An honest member's journal does not say who proposed what it does not commit.
    Unnamed,
    /// Somebody honest is named as offender.
    HonestBlamed,
    /// Something is attributed to somebody who did not say it.
    Misattributed,
    /// The state of an honest member holds a leaf in the name of a device that has another key.
    Impostor,
    /// An honest member merged a Commit that all of them must refuse.
    Merged,
    /// What an honest device does every day does not succeed within the attempts that it has.
    Stuck,
    /// A Commit that nobody can use stands.
    NotTakenBack,
    /// At the end the honest ones do not agree, or do not read each other.
    Disagreeing,
    /// The offender, or somebody who asked to leave, is still in.
    StillIn,
    /// An honest device that nobody had a reason to remove is out.
    Evicted,
    /// An honest device that was to be added does not come in.
    LeftOut,
    /// A KeyPackage that was given out once is in stock after its owner was online.
    Resold,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Answer,
        Self::Unnamed,
        Self::HonestBlamed,
        Self::Misattributed,
        Self::Impostor,
        Self::Merged,
        Self::Stuck,
        Self::NotTakenBack,
        Self::Disagreeing,
        Self::StillIn,
        Self::Evicted,
        Self::LeftOut,
        Self::Resold,
    ];

    /// The count of the summary that it belongs to.
    pub fn sum(self) -> &'static str {
        match self {
            Self::Answer => "wrong_answers",
            Self::Unnamed => "offenders_unnamed",
            Self::HonestBlamed => "honest_blamed",
            Self::Misattributed | Self::Impostor => "misattributed",
            Self::Stuck
            | Self::NotTakenBack
            | Self::Disagreeing
            | Self::StillIn
            | Self::Evicted
            | Self::LeftOut => "bricked",
            Self::Merged => "merged",
            Self::Resold => "resold",
        }
    }
}

/// One thing that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which kind of wrong.
    pub class: Class,
    /// In words.
    pub text: String,
}
