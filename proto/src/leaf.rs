//! LeafNode (RFC 9420 section 7.2), its credential and capabilities, read without keys; [`check_leaf`] holds what one
//! must be.

mod rules;

pub use rules::{LeafFault, SourceKind, check_grease, check_leaf, is_default_extension, is_grease};

pub(crate) use rules::doubled;

use crate::{
    suite::Suite,
    wire::{Malformed, Read, Reader, Write},
};

/// Extension type of a last-resort KeyPackage.
pub const LAST_RESORT: u16 = 0x000A;

/// A credential (RFC 9420 section 5.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Type 1.
    Basic(Vec<u8>),
    /// Type 2: certificates in DER, the leaf first.
    X509(Vec<Vec<u8>>),
}

/// What a client can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Protocol versions.
    pub versions: Vec<u16>,
    /// Cipher suites.
    pub suites: Vec<u16>,
    /// Extension types beyond the default ones.
    pub extensions: Vec<u16>,
    /// Proposal types beyond the default ones.
    pub proposals: Vec<u16>,
    /// Credential types.
    pub credentials: Vec<u16>,
}

/// Where a leaf comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A KeyPackage, with its lifetime in Unix seconds.
    KeyPackage {
        /// Inclusive.
        not_before: u64,
        /// Inclusive.
        not_after: u64,
    },
    /// An Update proposal.
    Update,
    /// A Commit's path, with its parent hash.
    Commit(Vec<u8>),
}

/// A leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafNode {
    /// HPKE key.
    pub encryption_key: Vec<u8>,
    /// Signature key, raw.
    pub signature_key: Vec<u8>,
    /// Who it is.
    pub credential: Credential,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Where it comes from.
    pub source: Source,
    /// Types and data.
    pub extensions: Vec<(u16, Vec<u8>)>,
    /// Over the rest.
    pub signature: Vec<u8>,
    /// LeafNodeTBS without group and index.
    pub to_be_signed: Vec<u8>,
}

/// A list of extensions (RFC 9420 section 13).
pub(crate) fn extensions(reader: &mut Reader<'_>) -> Read<Vec<(u16, Vec<u8>)>> {
    reader.list(|r| Ok((r.u16()?, r.vector()?.to_vec())))
}

impl Credential {
    fn read(reader: &mut Reader<'_>) -> Read<Self> {
        match reader.u16()? {
            1 => Ok(Self::Basic(reader.vector()?.to_vec())),
            2 => {
                let chain = reader.list(|r| Ok(r.vector()?.to_vec()))?;
                if chain.is_empty() {
                    return Err(Malformed("an X.509 credential without certificate"));
                }
                Ok(Self::X509(chain))
            }
            _ => Err(Malformed("credential type")),
        }
    }
}

impl LeafNode {
    /// Reads one.
    ///
    /// # Errors
    /// Truncated, or a credential or source of an unknown type.
    pub fn read(reader: &mut Reader<'_>) -> Read<Self> {
        let (to_be_signed, mut leaf) = reader.span(|r| {
            Ok(Self {
                encryption_key: r.vector()?.to_vec(),
                signature_key: r.vector()?.to_vec(),
                credential: Credential::read(r)?,
                capabilities: Capabilities {
                    versions: r.list(Reader::u16)?,
                    suites: r.list(Reader::u16)?,
                    extensions: r.list(Reader::u16)?,
                    proposals: r.list(Reader::u16)?,
                    credentials: r.list(Reader::u16)?,
                },
                source: match r.u8()? {
                    1 => Source::KeyPackage {
                        not_before: r.u64()?,
                        not_after: r.u64()?,
                    },
                    2 => Source::Update,
                    3 => Source::Commit(r.vector()?.to_vec()),
                    _ => return Err(Malformed("leaf node source")),
                },
                extensions: extensions(r)?,
                signature: Vec::new(),
                to_be_signed: Vec::new(),
            })
        })?;
        leaf.to_be_signed = to_be_signed.to_vec();
        leaf.signature = reader.vector()?.to_vec();
        Ok(leaf)
    }

    /// The leaf as it stands in trees and KeyPackages.
    pub fn encoded(&self) -> Vec<u8> {
        let mut bytes = self.to_be_signed.clone();
        bytes.put_vector(&self.signature);
        bytes
    }

    /// Verifies the leaf's own signature; group and index bind all but a KeyPackage's leaf.
    pub fn verify(&self, suite: Suite, place: Option<(&[u8], u32)>) -> bool {
        let mut content = self.to_be_signed.clone();
        if let (Source::Update | Source::Commit(_), Some((group_id, index))) = (&self.source, place)
        {
            content.put_vector(group_id);
            content.put(&index.to_be_bytes());
        }
        suite.verify_with_label(
            &self.signature_key,
            "LeafNodeTBS",
            &content,
            &self.signature,
        )
    }

    /// The one certificate of a device's credential.
    ///
    /// # Errors
    /// A basic credential, or more than one certificate.
    pub fn certificate(&self) -> Read<&[u8]> {
        match &self.credential {
            Credential::X509(chain) => match chain.as_slice() {
                [leaf] => Ok(leaf),
                _ => Err(Malformed("a credential holds exactly one certificate")),
            },
            Credential::Basic(_) => Err(Malformed("not an X.509 credential")),
        }
    }
}
