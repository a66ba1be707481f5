//! KeyPackage (RFC 9420 section 10), read without keys.

pub use crate::leaf::LAST_RESORT;
use crate::{
    framing::{self, WireFormat},
    hpke::{self, KeyFault},
    leaf::{self, LeafFault, LeafNode, Source, SourceKind, extensions},
    mutants::{self, Mutant},
    suite::Suite,
    wire::{Malformed, Read, Reader},
};

/// The rule that a KeyPackage breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyPackageFault {
    /// Its suite is none of those whose keys can be looked at here.
    #[error("the cipher suite is not known here")]
    UnknownSuite,
    /// Its leaf may stand in no tree.
    #[error(transparent)]
    Leaf(LeafFault),
    /// Nobody can encrypt a Welcome to it.
    #[error("the init_key {0} (RFC 9180 section 7.1)")]
    InitKey(KeyFault),
    /// RFC 9420 section 10.1: `init_key` and the leaf's `encryption_key` differ.
    #[error("the init_key is the leaf's encryption_key (RFC 9420 section 10.1)")]
    KeysEqual,
    /// RFC 9420 section 13: at most one extension of a type.
    #[error("the KeyPackage holds extension {0:#06x} twice (RFC 9420 section 13)")]
    ExtensionTwice(u16),
    /// RFC 9420 section 10: what it carries its leaf must list.
    #[error(
        "the KeyPackage's extension {0:#06x} is not in its leaf's capabilities (RFC 9420 section 10)"
    )]
    ExtensionNotListed(u16),
    /// RFC 9420 section 17.3: the registry says where an extension may stand.
    #[error("extension {0:#06x} belongs into no KeyPackage (RFC 9420 section 17.3)")]
    ExtensionMisplaced(u16),
    /// The mark of a last-resort KeyPackage is empty.
    #[error("the last_resort extension has content")]
    LastResortContent,
}

impl KeyPackageFault {
    /// The rule's name, for programs.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::UnknownSuite => "suite",
            Self::Leaf(fault) => fault.rule(),
            Self::InitKey(_) => "init_key_form",
            Self::KeysEqual => "init_key_differs",
            Self::ExtensionTwice(_) => "extension_twice",
            Self::ExtensionNotListed(_) => "extension_in_capabilities",
            Self::ExtensionMisplaced(_) => "extension_misplaced",
            Self::LastResortContent => "last_resort_empty",
        }
    }
}

/// A parsed KeyPackage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPackage {
    /// Cipher suite code.
    pub suite: u16,
    /// HPKE key for the Welcome.
    pub init_key: Vec<u8>,
    /// The leaf that an Add puts into the tree.
    pub leaf: LeafNode,
    /// It may be used more than once.
    pub last_resort: bool,
    /// Types and data of its own extensions, not the leaf's.
    pub extensions: Vec<(u16, Vec<u8>)>,
    signature: Vec<u8>,
    to_be_signed: Vec<u8>,
    /// The KeyPackage without its MLSMessage header.
    body: Vec<u8>,
}

impl KeyPackage {
    /// Reads an `MLSMessage(KeyPackage)`.
    ///
    /// # Errors
    /// Another wire format or version, more than `max_bytes`, truncated or trailing bytes, a leaf that is none of a KeyPackage.
    pub fn parse(message: &[u8], max_bytes: usize) -> Read<Self> {
        let body = framing::body(message, max_bytes, WireFormat::KeyPackage)?;
        let mut reader = Reader::new(body);
        let (to_be_signed, mut package) = reader.span(|r| {
            if r.u16()? != 1 {
                return Err(Malformed("KeyPackage version"));
            }
            let suite = r.u16()?;
            let init_key = r.vector()?.to_vec();
            let leaf = LeafNode::read(r)?;
            let extensions = extensions(r)?;
            Ok(Self {
                suite,
                init_key,
                leaf,
                last_resort: extensions.iter().any(|(kind, _)| *kind == LAST_RESORT),
                extensions,
                signature: Vec::new(),
                to_be_signed: Vec::new(),
                body: body.to_vec(),
            })
        })?;
        package.to_be_signed = to_be_signed.to_vec();
        package.signature = reader.vector()?.to_vec();
        reader.finish()?;
        package.lifetime()?;
        Ok(package)
    }

    /// First and last second of its life, Unix seconds.
    ///
    /// # Errors
    /// The leaf is none of a KeyPackage, or its life ends before it begins.
    pub fn lifetime(&self) -> Read<(u64, u64)> {
        match self.leaf.source {
            Source::KeyPackage {
                not_before,
                not_after,
            } if not_before <= not_after => Ok((not_before, not_after)),
            _ => Err(Malformed("KeyPackage lifetime")),
        }
    }

    /// KeyPackageRef (RFC 9420 section 5.2); `None` for a suite whose hash is not known here.
    pub fn reference(&self) -> Option<Vec<u8>> {
        let suite = Suite::from_code(self.suite)?;
        Some(suite.ref_hash("MLS 1.0 KeyPackage Reference", &self.body))
    }

    /// Checks what RFC 9420 section 10.1 asks of a KeyPackage and section 7.3 of its leaf, from its bytes alone:
    /// signatures, certificate and the present time are not looked at.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), KeyPackageFault> {
        let suite = Suite::from_code(self.suite).ok_or(KeyPackageFault::UnknownSuite)?;
        leaf::check_leaf(&self.leaf, suite, SourceKind::KeyPackage)
            .map_err(KeyPackageFault::Leaf)?;
        hpke::check_public_key(suite, &self.init_key).map_err(KeyPackageFault::InitKey)?;
        if mutants::is_on(Mutant::KeyPackageRulesUnchecked) {
            return Ok(());
        }
        if self.init_key == self.leaf.encryption_key {
            return Err(KeyPackageFault::KeysEqual);
        }
        self.check_extensions()
    }

    fn check_extensions(&self) -> Result<(), KeyPackageFault> {
        if let Some(kind) = leaf::doubled(&self.extensions) {
            return Err(KeyPackageFault::ExtensionTwice(kind));
        }
        for (kind, data) in &self.extensions {
            if leaf::is_default_extension(*kind) {
                return Err(KeyPackageFault::ExtensionMisplaced(*kind));
            }
            if *kind == LAST_RESORT && !data.is_empty() {
                return Err(KeyPackageFault::LastResortContent);
            }
            if !self.leaf.capabilities.extensions.contains(kind) {
                return Err(KeyPackageFault::ExtensionNotListed(*kind));
            }
        }
        Ok(())
    }

    /// Checks that neither the KeyPackage nor its leaf carries an extension of a GREASE type. Capabilities may list
    /// such types.
    ///
    /// # Errors
    /// [`LeafFault::Grease`], in [`KeyPackageFault::Leaf`].
    pub fn check_grease(&self) -> Result<(), KeyPackageFault> {
        leaf::check_grease(&self.leaf).map_err(KeyPackageFault::Leaf)?;
        let mut kinds = self.extensions.iter().map(|(kind, _)| *kind);
        match kinds.find(|kind| leaf::is_grease(*kind)) {
            Some(kind) => Err(KeyPackageFault::Leaf(LeafFault::Grease(kind))),
            None => Ok(()),
        }
    }

    /// Verifies its own signature and its leaf's; `None` for an unknown suite.
    pub fn verify(&self) -> Option<bool> {
        let suite = Suite::from_code(self.suite)?;
        let key = &self.leaf.signature_key;
        let own =
            suite.verify_with_label(key, "KeyPackageTBS", &self.to_be_signed, &self.signature);
        Some(own && self.leaf.verify(suite, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        leaf::{Capabilities, Credential},
        policy::POLICY_EXTENSION,
    };

    fn good() -> KeyPackage {
        KeyPackage {
            suite: 1,
            init_key: vec![8; 32],
            leaf: LeafNode {
                encryption_key: vec![9; 32],
                signature_key: vec![],
                credential: Credential::X509(vec![vec![1]]),
                capabilities: Capabilities {
                    versions: vec![1],
                    suites: vec![1],
                    extensions: vec![POLICY_EXTENSION, LAST_RESORT, 0x0a0a],
                    proposals: vec![],
                    credentials: vec![2],
                },
                source: Source::KeyPackage {
                    not_before: 0,
                    not_after: 1,
                },
                extensions: vec![],
                signature: vec![],
                to_be_signed: vec![],
            },
            last_resort: true,
            extensions: vec![(LAST_RESORT, vec![])],
            signature: vec![],
            to_be_signed: vec![],
            body: vec![],
        }
    }

    type Spoil = fn(&mut KeyPackage);

    #[test]
    fn each_rule_refuses_what_breaks_it_and_nothing_else() {
        assert_eq!(good().check(), Ok(()));
        let length = |got| KeyPackageFault::InitKey(KeyFault::Length { expected: 32, got });
        let cases: [(Spoil, KeyPackageFault); 11] = [
            (|p| p.suite = 0x0a0a, KeyPackageFault::UnknownSuite),
            (|p| p.init_key.clear(), length(0)),
            (|p| p.init_key.truncate(5), length(5)),
            (
                |p| p.init_key = vec![0; 32],
                KeyPackageFault::InitKey(KeyFault::LowOrder),
            ),
            (|p| p.init_key = vec![9; 32], KeyPackageFault::KeysEqual),
            (
                |p| p.extensions.push((LAST_RESORT, vec![])),
                KeyPackageFault::ExtensionTwice(LAST_RESORT),
            ),
            (
                |p| p.extensions[0].1 = vec![1],
                KeyPackageFault::LastResortContent,
            ),
            (
                |p| p.leaf.capabilities.extensions = vec![POLICY_EXTENSION],
                KeyPackageFault::ExtensionNotListed(LAST_RESORT),
            ),
            (
                |p| p.extensions.push((0xff01, vec![])),
                KeyPackageFault::ExtensionNotListed(0xff01),
            ),
            (
                |p| p.extensions.push((3, vec![])),
                KeyPackageFault::ExtensionMisplaced(3),
            ),
            (
                |p| p.leaf.source = Source::Update,
                KeyPackageFault::Leaf(LeafFault::Source),
            ),
        ];
        for (spoil, fault) in cases {
            let mut package = good();
            spoil(&mut package);
            assert_eq!(package.check(), Err(fault));
        }
    }

    /// A switch that undid nothing would make whoever relies on it believe that it was found.
    #[cfg(feature = "mutants")]
    #[test]
    fn each_switch_undoes_its_rule() {
        let cases: [(Mutant, Spoil); 5] = [
            (Mutant::HpkeKeyFormUnchecked, |p| p.init_key.truncate(5)),
            (Mutant::HpkeKeyFormUnchecked, |p| {
                p.leaf.encryption_key = vec![0; 32];
            }),
            (Mutant::LeafRulesUnchecked, |p| {
                p.leaf.capabilities.proposals.push(1);
            }),
            (Mutant::LeafRulesUnchecked, |p| {
                p.leaf.capabilities = Capabilities {
                    extensions: vec![LAST_RESORT],
                    ..Capabilities::default()
                };
            }),
            (Mutant::KeyPackageRulesUnchecked, |p| {
                p.extensions[0].1 = vec![1];
            }),
        ];
        for (mutant, spoil) in cases {
            let mut package = good();
            spoil(&mut package);
            assert!(package.check().is_err(), "{mutant:?}");
            mutants::set(Some(mutant));
            let undone = package.check();
            mutants::set(None);
            assert_eq!(undone, Ok(()), "{mutant:?}");
        }
    }

    #[test]
    fn grease_is_refused_on_the_key_package_and_on_its_leaf() {
        let fault = Err(KeyPackageFault::Leaf(LeafFault::Grease(0x0a0a)));
        let mut own = good();
        own.extensions.push((0x0a0a, vec![]));
        let mut leaf = good();
        leaf.leaf.extensions.push((0x0a0a, vec![]));
        assert_eq!(good().check_grease(), Ok(()));
        for package in [own, leaf] {
            assert_eq!((package.check(), package.check_grease()), (Ok(()), fault));
        }
    }
}
