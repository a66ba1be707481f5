//! What a hostile member with full keys emits. Each object is well framed and well signed, and one or two things in it are bent.
//! With it stands what the service must answer: what can be seen to be false without keys is refused, and for the right reason.

use chancery_proto::{
    common::v1::Reason,
    policy::{ExternalJoin, Policy},
};

/// What the Delivery Service must answer to an object of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It is taken: nothing that a server can read is wrong with it.
    Taken,
    /// It is refused, for this reason.
    Refused(Reason),
    /// Both may be right, as the group stands.
    Either,
}

use Expected::{Either, Refused, Taken};

/// Refusals of a good object, because of where its sender and the group are when it comes.
const CIRCUMSTANCES: &[Reason] = &[
    Reason::CommitRequired,
    Reason::CommitterBarred,
    Reason::DeviceRevoked,
    Reason::EpochTooOld,
    Reason::EpochVoided,
    Reason::Group,
    Reason::PendingRemoval,
    Reason::StaleEpoch,
];

/// Whose object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A member's, or that of somebody who wants to be one.
    Member,
    /// The Delivery Service's own.
    Service,
}

/// What kind of group it happens in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// As groups are made by default.
    Usual,
    /// Messages may come from more past epochs than usual.
    Wide,
    /// Nobody comes in from outside: a device without a state has to be added again.
    Closed,
}

impl Ground {
    /// The one of a seed in which kinds are drawn.
    pub fn of_seed(seed: u64) -> Self {
        match seed % 16 {
            15 => Self::Closed,
            3 | 7 | 11 => Self::Wide,
            _ => Self::Usual,
        }
    }

    /// The policy's window.
    pub fn past_epochs(self) -> u8 {
        match self {
            Self::Wide => 3,
            Self::Usual | Self::Closed => Policy::for_domain("").past_epochs,
        }
    }

    /// Who may come in from outside.
    pub fn external_join(self) -> ExternalJoin {
        match self {
            Self::Closed => ExternalJoin::None,
            Self::Usual | Self::Wide => ExternalJoin::default(),
        }
    }
}

macro_rules! kinds {
    ($($kind:ident: $name:literal => $expected:expr,)*) => {
        /// One kind of object.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = $name] $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// In words.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// What the service must answer.
            pub fn expected(self) -> Expected {
                match self {
                    $(Self::$kind => $expected,)*
                }
            }
        }
    };
}

kinds! {
    ProposePsk: "proposal: a PSK that nobody has" => Taken,
    ProposeMember: "proposal: an Add of a member" => Taken,
    ProposeTwice: "proposal: two Adds of one device" => Taken,
    ProposeRemove: "proposal: a Remove of an honest member" => Taken,
    ProposeUpdate: "proposal: an Update of its own leaf" => Taken,
    ProposeCustom: "proposal: a type that nobody knows" => Taken,
    ProposeWindow: "proposal: GroupContextExtensions with a larger window" => Taken,
    ProposeNoJoin: "proposal: GroupContextExtensions without external joins" => Taken,
    ProposeHome: "proposal: GroupContextExtensions with another home domain" => Taken,
    ProposeNothing: "proposal: GroupContextExtensions without a policy" => Taken,
    ProposeUnpublished: "proposal: an Add by a KeyPackage that the service does not know" => Taken,
    CommitGarbage: "Commit: its ciphertext is spoilt" => Taken,
    CommitPsk: "Commit: a PSK that nobody has, by value" => Taken,
    CommitWindow: "Commit: a larger window, by value" => Refused(Reason::GroupInfoMismatch),
    CommitRemovesMore: "Commit: removes somebody whom its CommitInfo does not name" => Taken,
    CommitRemovesLess: "Commit: names somebody whom it does not remove" => Either,
    CommitOtherUser: "Commit: its CommitInfo names another user of the added device" => Refused(Reason::CommitInfoInvalid),
    CommitSeenAhead: "Commit: has seen more of the log than there is" => Refused(Reason::HistoryChanged),
    CommitSeenOther: "Commit: has seen another log" => Refused(Reason::HistoryChanged),
    CommitUnknownProposal: "Commit: takes a proposal that nobody sent" => Refused(Reason::CommitInfoInvalid),
    CommitRepeated: "Commit: the same id with other bytes" => Refused(Reason::MessageIdReused),
    CommitHalfPath: "Commit: half of the path secrets are encrypted to nobody" => Taken,
    CommitLowOrder: "Commit: a key of its path is of low order" => Either,
    CommitLeaverStays: "Commit: leaves somebody in who asked to leave" => Refused(Reason::PendingRemoval),
    InfoSpoilt: "GroupInfo: a spoilt signature" => Refused(Reason::GroupInfoMismatch),
    InfoSigner: "GroupInfo: another member's place" => Refused(Reason::GroupInfoMismatch),
    InfoPub: "GroupInfo: another external_pub, signed" => Taken,
    InfoNoPub: "GroupInfo: no external_pub, signed" => Refused(Reason::GroupInfoMismatch),
    InfoWindow: "GroupInfo: another policy, signed" => Refused(Reason::GroupInfoMismatch),
    InfoSuite: "GroupInfo: another suite, signed" => Refused(Reason::GroupInfoMismatch),
    TreeMissing: "tree: a node is left out" => Refused(Reason::TreeMismatch),
    TreeForeign: "tree: a node that is no MLS node, hashed and signed for" => Refused(Reason::Malformed),
    TreeWide: "tree: twice as wide, hashed and signed for" => Either,
    WelcomeSpoilt: "Welcome: garbage for its joiner" => Taken,
    WelcomeNone: "Welcome: none for the added device" => Refused(Reason::WelcomeMismatch),
    WelcomeOther: "Welcome: for another device" => Either,
    WelcomeSuite: "Welcome: of another suite" => Refused(Reason::WelcomeMismatch),
    WelcomeSwapped: "Welcome: the secrets of two joiners are swapped" => Taken,
    WelcomeElsewhere: "Welcome: garbage, into a group of the hostile member's own" => Taken,
    GhostLeaf: "leaf: a self-made certificate in somebody's name" => Refused(Reason::TreeMismatch),
    ExternalOther: "external Commit: removes an honest member" => Refused(Reason::CommitInfoInvalid),
    ExternalNone: "external Commit: does not remove its old leaf" => Refused(Reason::CommitInfoInvalid),
    ExternalTwo: "external Commit: removes its old leaf and an honest member" => Refused(Reason::CommitInfoInvalid),
    ExternalUnsigned: "external Commit: a spoilt signature" => Refused(Reason::CredentialInvalid),
    PutSuite: "PutGroupInfo: another suite" => Refused(Reason::GroupInfoMismatch),
    PutWindow: "PutGroupInfo: another policy" => Refused(Reason::GroupInfoMismatch),
    PutAlone: "PutGroupInfo: a tree of its own leaf alone" => Refused(Reason::TreeMismatch),
    PutPub: "PutGroupInfo: another external_pub" => Taken,
    PutAloneGarbage: "PutGroupInfo: a tree of its own leaf alone, and then a spoilt Commit" => Refused(Reason::TreeMismatch),
    PackageInit: "KeyPackage: an init_key of five bytes" => Refused(Reason::CredentialInvalid),
    PackageLeaf: "KeyPackage: an encryption_key of five bytes" => Refused(Reason::CredentialInvalid),
    PackageLowOrder: "KeyPackage: an encryption_key of low order" => Refused(Reason::CredentialInvalid),
    PackageSame: "KeyPackage: init_key and encryption_key are the same" => Refused(Reason::CredentialInvalid),
    PackageDefaults: "KeyPackage: capabilities that list a default type" => Refused(Reason::CredentialInvalid),
    PackageGrease: "KeyPackage: a leaf extension of a GREASE type" => Refused(Reason::CredentialInvalid),
    ClaimEverything: "claim: every KeyPackage of a device" => Taken,
    ReportSlander: "report: a good Commit cannot be used" => Either,
    ReportSpoilt: "report: a spoilt signature" => Refused(Reason::ProofInvalid),
    LeaveAndStay: "leave: asks to leave, and goes on" => Either,
    MessageBytes: "message: no text" => Taken,
    MessageEmpty: "message: nothing in it" => Taken,
    MessageOtherId: "message: another id inside" => Taken,
    MessageRepeated: "message: the same bytes under another id" => Taken,
    MessageLate: "message: framed an epoch ago" => Either,
    MessageMoved: "message: framed at a leaf that another device has when it comes" => Taken,
    ServiceReplaysLeave: "service: repeats a leave request of an earlier membership" => Taken,
    ServiceForgets: "service: forgets a group, as after a restore" => Taken,
    ServiceForgetsTree: "service: has a Welcome and not its tree" => Taken,
    ServiceWithholdsPackages: "service: gives out no KeyPackage of a device" => Taken,
    ServiceSwapsPackage: "service: gives out a bent KeyPackage of one of two devices" => Taken,
    ServiceSellsAgain: "service: gives out KeyPackages again after a restore" => Taken,
    ServiceWithholdsWelcome: "service: keeps a Welcome back from a device without a state" => Taken,
}

/// Kinds that are known to break a promise that is not given: `docs/limits.md` says which. They are emitted only when they are named.
pub const NOT_HELD: &[Kind] = &[Kind::PutPub, Kind::ServiceReplaysLeave];

impl Kind {
    /// Who emits it.
    pub fn role(self) -> Role {
        match self {
            Self::ServiceReplaysLeave
            | Self::ServiceForgets
            | Self::ServiceForgetsTree
            | Self::ServiceWithholdsPackages
            | Self::ServiceSwapsPackage
            | Self::ServiceSellsAgain
            | Self::ServiceWithholdsWelcome => Role::Service,
            _ => Role::Member,
        }
    }

    /// The kind of group that it needs.
    pub fn ground(self) -> Ground {
        match self {
            Self::MessageMoved => Ground::Wide,
            Self::ServiceWithholdsWelcome => Ground::Closed,
            _ => Ground::Usual,
        }
    }

    /// Whether it is emitted in such a group. Where nobody comes back from outside, a Commit that is taken back leaves its readers to whoever adds
    /// them again, so that nothing else is emitted there.
    pub fn is_of(self, ground: Ground) -> bool {
        match ground {
            Ground::Wide => self.ground() != Ground::Closed,
            Ground::Usual | Ground::Closed => self.ground() == ground,
        }
    }

    /// Whether honest members must say in their journals who proposed it: they commit it never.
    pub fn is_bad_proposal(self) -> bool {
        matches!(
            self,
            Self::ProposePsk
                | Self::ProposeMember
                | Self::ProposeCustom
                | Self::ProposeWindow
                | Self::ProposeNoJoin
                | Self::ProposeHome
                | Self::ProposeNothing
        )
    }

    /// Whether every honest member must refuse it where the service takes it: a Commit that lies, or that nobody can open.
    pub fn is_bad_commit(self) -> bool {
        matches!(
            self,
            Self::CommitGarbage
                | Self::CommitPsk
                | Self::CommitWindow
                | Self::CommitRemovesMore
                | Self::CommitRemovesLess
                | Self::CommitLowOrder
                | Self::CommitOtherUser
                | Self::GhostLeaf
        )
    }

    /// What is wrong with an answer of the service, where something is: `None` for an accepted object, or the refusal's reason.
    pub fn wrong_answer(self, refused: Option<Option<Reason>>) -> Option<String> {
        let by_circumstance =
            |reason: Option<Reason>| reason.is_some_and(|reason| CIRCUMSTANCES.contains(&reason));
        match (self.expected(), refused) {
            (Either, _) | (Taken, None) => None,
            (Refused(reason), None) => Some(format!("taken, and not refused with {reason:?}")),
            (_, Some(reason)) if by_circumstance(reason) => None,
            (Refused(right), Some(reason)) if reason == Some(right) => None,
            (right, Some(reason)) => Some(format!("refused with {reason:?}, and not {right:?}")),
        }
    }
}

/// The kinds that nothing may come of.
pub fn held() -> impl Iterator<Item = Kind> + Clone {
    let kinds = Kind::ALL.iter().copied();
    kinds.filter(|kind| !NOT_HELD.contains(kind))
}
