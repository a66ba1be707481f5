//! What a leaf must be before it may stand in a tree (RFC 9420 sections 7.2 and 7.3), decided from its bytes alone:
//! every member and the server decide alike.

use std::collections::BTreeSet;

use super::{Credential, LAST_RESORT, LeafNode, Source};
use crate::{
    hpke::{self, KeyFault},
    mutants::{self, Mutant},
    policy::POLICY_EXTENSION,
    suite::Suite,
};

/// `leaf_node_source` (RFC 9420 section 7.2) without what comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// The leaf of a KeyPackage.
    KeyPackage,
    /// The leaf of an Update proposal.
    Update,
    /// The leaf of a Commit's path, an external Commit's too.
    Commit,
}

impl Source {
    /// The kind of this source.
    pub fn kind(&self) -> SourceKind {
        match self {
            Self::KeyPackage { .. } => SourceKind::KeyPackage,
            Self::Update => SourceKind::Update,
            Self::Commit(_) => SourceKind::Commit,
        }
    }
}

/// The rule that a leaf breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeafFault {
    /// RFC 9420 section 7.3: where a leaf comes from is where it stands.
    #[error("the leaf_node_source is not that of its place (RFC 9420 section 7.3)")]
    Source,
    /// Nobody can encrypt to it.
    #[error("the leaf's encryption_key {0} (RFC 9180 section 7.1)")]
    EncryptionKey(KeyFault),
    /// RFC 9420 section 7.2: the protocol version of the group.
    #[error("the leaf's capabilities lack the version mls10 (RFC 9420 section 7.2)")]
    VersionNotListed,
    /// RFC 9420 section 7.2: the cipher suite of the group.
    #[error("the leaf's capabilities lack its own cipher suite (RFC 9420 section 7.2)")]
    SuiteNotListed,
    /// RFC 9420 section 7.3: its own credential type.
    #[error("the leaf's capabilities lack its own credential type (RFC 9420 section 7.3)")]
    CredentialNotListed,
    /// RFC 9420 section 7.2: default extension types are not listed.
    #[error(
        "the leaf's capabilities list the default extension type {0:#06x} (RFC 9420 section 7.2)"
    )]
    DefaultExtensionListed(u16),
    /// RFC 9420 section 7.2: default proposal types are not listed.
    #[error(
        "the leaf's capabilities list the default proposal type {0:#06x} (RFC 9420 section 7.2)"
    )]
    DefaultProposalListed(u16),
    /// RFC 9420 section 13: at most one extension of a type.
    #[error("the leaf holds extension {0:#06x} twice (RFC 9420 section 13)")]
    ExtensionTwice(u16),
    /// RFC 9420 section 7.3: what it carries it must know.
    #[error("the leaf's extension {0:#06x} is not in its capabilities (RFC 9420 section 7.3)")]
    ExtensionNotListed(u16),
    /// RFC 9420 section 17.3: the registry says where an extension may stand.
    #[error("extension {0:#06x} belongs into no leaf (RFC 9420 section 17.3)")]
    ExtensionMisplaced(u16),
    /// The contract: everybody must be able to read the group's policy.
    #[error("the leaf's capabilities lack the policy extension 0xF1C0")]
    PolicyNotListed,
    /// RFC 9420 section 13.5 allows it; openmls 0.9.2 refuses every tree that holds such a leaf.
    #[error("extension {0:#06x} is of a GREASE type, which locks openmls 0.9.2 out of the group")]
    Grease(u16),
}

impl LeafFault {
    /// The rule's name, for programs.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Source => "leaf_node_source",
            Self::EncryptionKey(_) => "encryption_key_form",
            Self::VersionNotListed => "version_in_capabilities",
            Self::SuiteNotListed => "suite_in_capabilities",
            Self::CredentialNotListed => "credential_in_capabilities",
            Self::DefaultExtensionListed(_) => "default_extension_in_capabilities",
            Self::DefaultProposalListed(_) => "default_proposal_in_capabilities",
            Self::ExtensionTwice(_) => "leaf_extension_twice",
            Self::ExtensionNotListed(_) => "leaf_extension_in_capabilities",
            Self::ExtensionMisplaced(_) => "leaf_extension_misplaced",
            Self::PolicyNotListed => "policy_in_capabilities",
            Self::Grease(_) => "grease_extension",
        }
    }
}

/// Protocol version mls10.
const MLS10: u16 = 1;
/// `application_id`, the one default extension that a leaf may carry (RFC 9420 section 5.3.3).
const APPLICATION_ID: u16 = 1;

/// Default extension types (RFC 9420 section 7.2): `application_id` to `external_senders`.
pub fn is_default_extension(kind: u16) -> bool {
    (1..=5).contains(&kind)
}

/// Default proposal types (RFC 9420 section 7.2): `add` to `group_context_extensions`.
fn is_default_proposal(kind: u16) -> bool {
    (1..=7).contains(&kind)
}

/// A type that stands for nothing (RFC 9420 section 13.5): 0x0A0A, 0x1A1A, ..., 0xEAEA.
pub fn is_grease(kind: u16) -> bool {
    kind & 0x0f0f == 0x0a0a && kind >> 8 == kind & 0xff && kind != 0xfafa
}

/// The first type that stands twice in a list of extensions.
pub(crate) fn doubled(extensions: &[(u16, Vec<u8>)]) -> Option<u16> {
    let mut seen = BTreeSet::new();
    let mut kinds = extensions.iter().map(|(kind, _)| *kind);
    kinds.find(|kind| !seen.insert(*kind))
}

/// Checks a leaf of a group of this suite, or of a KeyPackage of it, that stands where a leaf of this source belongs.
/// Signature, certificate and lifetime are not looked at.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_leaf(leaf: &LeafNode, suite: Suite, source: SourceKind) -> Result<(), LeafFault> {
    hpke::check_public_key(suite, &leaf.encryption_key).map_err(LeafFault::EncryptionKey)?;
    if mutants::is_on(Mutant::LeafRulesUnchecked) {
        return Ok(());
    }
    if leaf.source.kind() != source {
        return Err(LeafFault::Source);
    }
    check_capabilities(leaf, suite)?;
    check_extensions(leaf)
}

fn check_capabilities(leaf: &LeafNode, suite: Suite) -> Result<(), LeafFault> {
    let can = &leaf.capabilities;
    let own_credential = match leaf.credential {
        Credential::Basic(_) => 1,
        Credential::X509(_) => 2,
    };
    if !can.versions.contains(&MLS10) {
        return Err(LeafFault::VersionNotListed);
    }
    if !can.suites.contains(&suite.code()) {
        return Err(LeafFault::SuiteNotListed);
    }
    if !can.credentials.contains(&own_credential) {
        return Err(LeafFault::CredentialNotListed);
    }
    let mut extensions = can.extensions.iter().copied();
    if let Some(kind) = extensions.find(|kind| is_default_extension(*kind)) {
        return Err(LeafFault::DefaultExtensionListed(kind));
    }
    let mut proposals = can.proposals.iter().copied();
    if let Some(kind) = proposals.find(|kind| is_default_proposal(*kind)) {
        return Err(LeafFault::DefaultProposalListed(kind));
    }
    if !can.extensions.contains(&POLICY_EXTENSION) {
        return Err(LeafFault::PolicyNotListed);
    }
    Ok(())
}

fn check_extensions(leaf: &LeafNode) -> Result<(), LeafFault> {
    if let Some(kind) = doubled(&leaf.extensions) {
        return Err(LeafFault::ExtensionTwice(kind));
    }
    for (kind, _) in &leaf.extensions {
        if *kind == APPLICATION_ID {
            continue;
        }
        if is_default_extension(*kind) || *kind == LAST_RESORT {
            return Err(LeafFault::ExtensionMisplaced(*kind));
        }
        if !leaf.capabilities.extensions.contains(kind) {
            return Err(LeafFault::ExtensionNotListed(*kind));
        }
    }
    Ok(())
}

/// Checks that a leaf carries no extension of a GREASE type. Capabilities may list such types.
///
/// # Errors
/// [`LeafFault::Grease`].
pub fn check_grease(leaf: &LeafNode) -> Result<(), LeafFault> {
    if mutants::is_on(Mutant::GreaseExtensionTaken) {
        return Ok(());
    }
    let mut kinds = leaf.extensions.iter().map(|(kind, _)| *kind);
    match kinds.find(|kind| is_grease(*kind)) {
        Some(kind) => Err(LeafFault::Grease(kind)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaf::Capabilities;

    const SUITE: Suite = Suite::X25519Aes128;

    fn good() -> LeafNode {
        LeafNode {
            encryption_key: vec![9; 32],
            signature_key: vec![1; 32],
            credential: Credential::X509(vec![vec![1]]),
            capabilities: Capabilities {
                versions: vec![1],
                suites: vec![0x2a2a, 1],
                extensions: vec![POLICY_EXTENSION, LAST_RESORT, 0x3a3a, 0xff01],
                proposals: vec![0x4a4a, 8],
                credentials: vec![0x5a5a, 2],
            },
            source: Source::Commit(vec![]),
            extensions: vec![(1, vec![7]), (0xff01, vec![])],
            signature: vec![],
            to_be_signed: vec![],
        }
    }

    type Spoil = fn(&mut LeafNode);

    #[test]
    fn each_rule_refuses_what_breaks_it_and_nothing_else() {
        assert_eq!(check_leaf(&good(), SUITE, SourceKind::Commit), Ok(()));
        let length = |got| LeafFault::EncryptionKey(KeyFault::Length { expected: 32, got });
        let low = LeafFault::EncryptionKey(KeyFault::LowOrder);
        let cases: [(Spoil, LeafFault); 19] = [
            (|l| l.encryption_key.clear(), length(0)),
            (|l| l.encryption_key.truncate(5), length(5)),
            (|l| l.encryption_key = vec![0; 32], low),
            (|l| l.source = Source::Update, LeafFault::Source),
            (
                |l| {
                    l.source = Source::KeyPackage {
                        not_before: 0,
                        not_after: 1,
                    }
                },
                LeafFault::Source,
            ),
            (
                |l| l.capabilities.versions = vec![2],
                LeafFault::VersionNotListed,
            ),
            (
                |l| l.capabilities.suites = vec![3],
                LeafFault::SuiteNotListed,
            ),
            (
                |l| l.capabilities.credentials = vec![1],
                LeafFault::CredentialNotListed,
            ),
            (
                |l| l.credential = Credential::Basic(vec![]),
                LeafFault::CredentialNotListed,
            ),
            (
                |l| l.capabilities.extensions.push(1),
                LeafFault::DefaultExtensionListed(1),
            ),
            (
                |l| l.capabilities.extensions.push(5),
                LeafFault::DefaultExtensionListed(5),
            ),
            (
                |l| l.capabilities.proposals.push(1),
                LeafFault::DefaultProposalListed(1),
            ),
            (
                |l| l.capabilities.proposals.push(7),
                LeafFault::DefaultProposalListed(7),
            ),
            (
                |l| l.capabilities.extensions.retain(|e| *e != POLICY_EXTENSION),
                LeafFault::PolicyNotListed,
            ),
            (
                |l| l.extensions.push((1, vec![])),
                LeafFault::ExtensionTwice(1),
            ),
            (
                |l| l.extensions.push((0xff01, vec![1])),
                LeafFault::ExtensionTwice(0xff01),
            ),
            (
                |l| l.extensions.push((0xff02, vec![])),
                LeafFault::ExtensionNotListed(0xff02),
            ),
            (
                |l| l.extensions.push((2, vec![])),
                LeafFault::ExtensionMisplaced(2),
            ),
            (
                |l| l.extensions.push((LAST_RESORT, vec![])),
                LeafFault::ExtensionMisplaced(LAST_RESORT),
            ),
        ];
        for (spoil, fault) in cases {
            let mut leaf = good();
            spoil(&mut leaf);
            assert_eq!(check_leaf(&leaf, SUITE, SourceKind::Commit), Err(fault));
        }
    }

    #[test]
    fn grease_may_be_listed_and_not_carried() {
        let mut leaf = good();
        assert_eq!(check_grease(&leaf), Ok(()));
        leaf.extensions.push((0x3a3a, vec![1]));
        assert_eq!(check_leaf(&leaf, SUITE, SourceKind::Commit), Ok(()));
        assert_eq!(check_grease(&leaf), Err(LeafFault::Grease(0x3a3a)));
    }

    #[test]
    fn grease_types_are_those_of_the_rfc() {
        let grease: Vec<u16> = (0..=u16::MAX).filter(|kind| is_grease(*kind)).collect();
        let expected: Vec<u16> = (0..15).map(|n| 0x0a0a + n * 0x1010).collect();
        assert_eq!(grease, expected);
    }
}
