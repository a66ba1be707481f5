//! What a hostile member with full keys emits. Each object is well framed and well signed, and one or two things in it are bent.

macro_rules! kinds {
    ($($kind:ident: $name:literal,)*) => {
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
        }
    };
}

kinds! {
    ProposePsk: "proposal: a PSK that nobody has",
    ProposeMember: "proposal: an Add of a member",
    ProposeTwice: "proposal: two Adds of one device",
    ProposeRemove: "proposal: a Remove of an honest member",
    ProposeUpdate: "proposal: an Update of its own leaf",
    ProposeCustom: "proposal: a type that nobody knows",
    ProposeWindow: "proposal: GroupContextExtensions with a larger window",
    ProposeNoJoin: "proposal: GroupContextExtensions without external joins",
    ProposeHome: "proposal: GroupContextExtensions with another home domain",
    ProposeNothing: "proposal: GroupContextExtensions without a policy",
    CommitGarbage: "Commit: its ciphertext is spoilt",
    CommitPsk: "Commit: a PSK that nobody has, by value",
    CommitWindow: "Commit: a larger window, by value",
    CommitRemovesMore: "Commit: removes somebody whom its CommitInfo does not name",
    CommitRemovesLess: "Commit: names somebody whom it does not remove",
    CommitOtherUser: "Commit: its CommitInfo names another user of the added device",
    CommitSeenAhead: "Commit: has seen more of the log than there is",
    CommitSeenOther: "Commit: has seen another log",
    CommitUnknownProposal: "Commit: takes a proposal that nobody sent",
    CommitRepeated: "Commit: the same id with other bytes",
    InfoSpoilt: "GroupInfo: a spoilt signature",
    InfoSigner: "GroupInfo: another member's place",
    InfoPub: "GroupInfo: another external_pub, signed",
    InfoNoPub: "GroupInfo: no external_pub, signed",
    InfoWindow: "GroupInfo: another policy, signed",
    InfoSuite: "GroupInfo: another suite, signed",
    TreeMissing: "tree: a node is left out",
    TreeForeign: "tree: a node that is no MLS node, hashed and signed for",
    TreeWide: "tree: twice as wide, hashed and signed for",
    WelcomeSpoilt: "Welcome: garbage for its joiner",
    WelcomeNone: "Welcome: none for the added device",
    WelcomeOther: "Welcome: for another device",
    GhostLeaf: "leaf: a self-made certificate in somebody's name",
    ExternalOther: "external Commit: removes an honest member",
    ExternalNone: "external Commit: does not remove its old leaf",
    ExternalTwo: "external Commit: removes its old leaf and an honest member",
    ExternalUnsigned: "external Commit: a spoilt signature",
    PutSuite: "PutGroupInfo: another suite",
    PutWindow: "PutGroupInfo: another policy",
    PutAlone: "PutGroupInfo: a tree of its own leaf alone",
    PutPub: "PutGroupInfo: another external_pub",
    PackageInit: "KeyPackage: an init_key of five bytes",
    PackageLeaf: "KeyPackage: an encryption_key of five bytes",
    PackageLowOrder: "KeyPackage: an encryption_key of low order",
    PackageSame: "KeyPackage: init_key and encryption_key are the same",
    PackageDefaults: "KeyPackage: capabilities that list a default type",
    ReportSlander: "report: a good Commit cannot be used",
    ReportSpoilt: "report: a spoilt signature",
    LeaveAndStay: "leave: asks to leave, and goes on",
    MessageBytes: "message: no text",
    MessageEmpty: "message: nothing in it",
    MessageOtherId: "message: another id inside",
    MessageRepeated: "message: the same bytes under another id",
    MessageLate: "message: framed an epoch ago",
}

/// Kinds that are known to break a promise that is not given: `docs/limits.md` says which. They are emitted only when they are named.
pub const NOT_HELD: &[Kind] = &[Kind::PutPub];

/// The kinds that nothing may come of.
pub fn held() -> impl Iterator<Item = Kind> + Clone {
    let kinds = Kind::ALL.iter().copied();
    kinds.filter(|kind| !NOT_HELD.contains(kind))
}
