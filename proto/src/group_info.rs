//! GroupInfo and GroupContext (RFC 9420 sections 12.4.3 and 8.1), read without keys.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use crate::{
    framing::{self, WireFormat},
    leaf::extensions,
    policy::{POLICY_EXTENSION, Policy},
    suite::Suite,
    wire::{Malformed, Read, Reader, Write},
};

const RATCHET_TREE: u16 = 2;
const EXTERNAL_PUB: u16 = 4;

/// A parsed GroupInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// Cipher suite code.
    pub suite: u16,
    /// The group.
    pub group_id: Vec<u8>,
    /// Its epoch.
    pub epoch: u64,
    /// RFC 9420 section 7.8.
    pub tree_hash: Vec<u8>,
    /// Extensions of the GroupContext.
    pub context_extensions: Vec<(u16, Vec<u8>)>,
    /// The GroupContext's bytes.
    pub group_context: Vec<u8>,
    /// Key for external joins (RFC 9420 section 12.4.3.2), if the GroupInfo gives one.
    pub external_pub: Option<Vec<u8>>,
    /// Proves the epoch's state.
    pub confirmation_tag: Vec<u8>,
    /// Leaf index of the signer.
    pub signer: u32,
    /// By the signer's leaf key.
    pub signature: Vec<u8>,
    /// What it is over.
    to_be_signed: Vec<u8>,
}

impl GroupInfo {
    /// Reads an `MLSMessage(GroupInfo)`. A ratchet_tree extension is refused: the tree travels apart.
    ///
    /// # Errors
    /// Malformed, or more than `max_bytes`.
    pub fn parse(message: &[u8], max_bytes: usize) -> Read<Self> {
        let body = framing::body(message, max_bytes, WireFormat::GroupInfo)?;
        let mut reader = Reader::new(body);
        let (to_be_signed, mut info) = reader.span(Self::unsigned)?;
        info.to_be_signed = to_be_signed.to_vec();
        info.signature = reader.vector()?.to_vec();
        reader.finish()?;
        Ok(info)
    }

    fn unsigned(reader: &mut Reader<'_>) -> Read<Self> {
        let (group_context, mut info) = reader.span(Self::context)?;
        info.group_context = group_context.to_vec();
        for (kind, data) in unique_extensions(reader)? {
            match kind {
                RATCHET_TREE => return Err(Malformed("a ratchet_tree extension")),
                EXTERNAL_PUB => {
                    let key = crate::wire::exact(&data, data.len(), |r| Ok(r.vector()?.to_vec()))?;
                    info.external_pub = Some(key);
                }
                _ => {}
            }
        }
        info.confirmation_tag = reader.vector()?.to_vec();
        info.signer = reader.u32()?;
        Ok(info)
    }

    /// Verifies the signature with the signer's leaf key; `None` for a suite that is not known here.
    pub fn verify(&self, signature_key: &[u8]) -> Option<bool> {
        let suite = Suite::from_code(self.suite)?;
        Some(suite.verify_with_label(
            signature_key,
            "GroupInfoTBS",
            &self.to_be_signed,
            &self.signature,
        ))
    }

    fn context(reader: &mut Reader<'_>) -> Read<Self> {
        if reader.u16()? != 1 {
            return Err(Malformed("GroupContext version"));
        }
        let suite = reader.u16()?;
        let group_id = reader.vector()?.to_vec();
        let epoch = reader.u64()?;
        let tree_hash = reader.vector()?.to_vec();
        let _confirmed_transcript_hash = reader.vector()?;
        Ok(Self {
            suite,
            group_id,
            epoch,
            tree_hash,
            context_extensions: unique_extensions(reader)?,
            group_context: Vec::new(),
            external_pub: None,
            confirmation_tag: Vec::new(),
            signer: 0,
            signature: Vec::new(),
            to_be_signed: Vec::new(),
        })
    }

    /// `SHA-256(GroupContext || confirmation_tag<V> || external_pub<V>)`, the last empty where the GroupInfo gives none.
    pub fn group_state_hash(&self) -> [u8; 32] {
        group_state_hash(
            &self.group_context,
            &self.confirmation_tag,
            self.external_pub.as_deref(),
        )
    }

    /// The policy in the GroupContext.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn policy(&self) -> Read<Policy> {
        let (_, data) = self
            .context_extensions
            .iter()
            .find(|(kind, _)| *kind == POLICY_EXTENSION)
            .ok_or(Malformed("no policy extension"))?;
        Policy::decode(data)
    }
}

/// Extensions, at most one of a type (RFC 9420 section 13.4).
fn unique_extensions(reader: &mut Reader<'_>) -> Read<Vec<(u16, Vec<u8>)>> {
    let extensions = extensions(reader)?;
    let kinds: BTreeSet<u16> = extensions.iter().map(|(kind, _)| *kind).collect();
    if kinds.len() == extensions.len() {
        Ok(extensions)
    } else {
        Err(Malformed("an extension twice"))
    }
}

/// What a member compares with the hash that came with a Commit.
pub fn group_state_hash(
    group_context: &[u8],
    confirmation_tag: &[u8],
    external_pub: Option<&[u8]>,
) -> [u8; 32] {
    let mut bytes = group_context.to_vec();
    bytes.put_vector(confirmation_tag);
    bytes.put_vector(external_pub.unwrap_or_default());
    Sha256::digest(bytes).into()
}
