//! KeyPackage (RFC 9420 section 10), read without keys.

use crate::{
    framing::{self, WireFormat},
    leaf::{LeafNode, Source, extensions},
    suite::Suite,
    wire::{Malformed, Read, Reader},
};

/// Extension type of a last-resort KeyPackage.
pub const LAST_RESORT: u16 = 0x000A;

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

    /// Verifies its own signature and its leaf's; `None` for an unknown suite.
    pub fn verify(&self) -> Option<bool> {
        let suite = Suite::from_code(self.suite)?;
        let key = &self.leaf.signature_key;
        let own =
            suite.verify_with_label(key, "KeyPackageTBS", &self.to_be_signed, &self.signature);
        Some(own && self.leaf.verify(suite, None))
    }
}
