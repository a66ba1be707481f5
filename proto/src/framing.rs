//! The header of every MLS message (RFC 9420 section 6), read without keys.

use crate::{
    leaf::LeafNode,
    suite::Suite,
    wire::{Malformed, Read, Reader, Write},
};

/// RFC 9420 section 17.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireFormat {
    /// 1
    PublicMessage,
    /// 2
    PrivateMessage,
    /// 3
    Welcome,
    /// 4
    GroupInfo,
    /// 5
    KeyPackage,
}

/// Reads version and wire format.
fn header(reader: &mut Reader<'_>) -> Read<WireFormat> {
    if reader.u16()? != 1 {
        return Err(Malformed("MLS version"));
    }
    match reader.u16()? {
        1 => Ok(WireFormat::PublicMessage),
        2 => Ok(WireFormat::PrivateMessage),
        3 => Ok(WireFormat::Welcome),
        4 => Ok(WireFormat::GroupInfo),
        5 => Ok(WireFormat::KeyPackage),
        _ => Err(Malformed("wire format")),
    }
}

/// The body behind the header of an `MLSMessage` of this format.
pub(crate) fn body(message: &[u8], max_bytes: usize, format: WireFormat) -> Read<&[u8]> {
    if message.len() > max_bytes {
        return Err(Malformed("too large"));
    }
    let mut reader = Reader::new(message);
    if header(&mut reader)? != format {
        return Err(Malformed("another wire format"));
    }
    Ok(reader.rest())
}

/// An `MLSMessage` with this body.
pub(crate) fn message(format: WireFormat, body: &[u8]) -> Vec<u8> {
    let code: u16 = match format {
        WireFormat::PublicMessage => 1,
        WireFormat::PrivateMessage => 2,
        WireFormat::Welcome => 3,
        WireFormat::GroupInfo => 4,
        WireFormat::KeyPackage => 5,
    };
    let mut bytes = Vec::with_capacity(body.len() + 4);
    bytes.put(&1u16.to_be_bytes());
    bytes.put(&code.to_be_bytes());
    bytes.put(body);
    bytes
}

/// What a message holds (RFC 9420 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// 1
    Application,
    /// 2
    Proposal,
    /// 3
    Commit,
}

fn content_type(reader: &mut Reader<'_>) -> Read<ContentType> {
    match reader.u8()? {
        1 => Ok(ContentType::Application),
        2 => Ok(ContentType::Proposal),
        3 => Ok(ContentType::Commit),
        _ => Err(Malformed("content type")),
    }
}

/// What a PrivateMessage shows (RFC 9420 section 6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateHeader {
    /// The group.
    pub group_id: Vec<u8>,
    /// The epoch it was made in.
    pub epoch: u64,
    /// What it holds.
    pub content_type: ContentType,
    /// In clear, and bound to it.
    pub authenticated_data: Vec<u8>,
}

/// An external Commit in a PublicMessage (RFC 9420 section 12.4.3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalCommit {
    /// The group.
    pub group_id: Vec<u8>,
    /// The epoch it was made in.
    pub epoch: u64,
    /// In clear, and bound to it.
    pub authenticated_data: Vec<u8>,
    /// Leaf indices that it removes.
    pub removes: Vec<u32>,
    /// The joiner's new leaf.
    pub leaf: LeafNode,
    /// HPKE keys of the nodes of its path.
    pub path_keys: Vec<Vec<u8>>,
    signature: Vec<u8>,
    framed_content: Vec<u8>,
}

/// A message as far as it can be read without keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// By a member.
    Private(PrivateHeader),
    /// By a joiner.
    ExternalCommit(Box<ExternalCommit>),
}

/// Reads a handshake or application message.
///
/// # Errors
/// Malformed; a PublicMessage that is no external Commit; a Welcome, GroupInfo or KeyPackage.
pub fn parse(message: &[u8], max_bytes: usize) -> Read<Message> {
    if message.len() > max_bytes {
        return Err(Malformed("too large"));
    }
    let mut reader = Reader::new(message);
    let parsed = match header(&mut reader)? {
        WireFormat::PrivateMessage => Message::Private(private(&mut reader)?),
        WireFormat::PublicMessage => Message::ExternalCommit(Box::new(public(&mut reader)?)),
        _ => return Err(Malformed("another wire format")),
    };
    reader.finish()?;
    Ok(parsed)
}

fn private(reader: &mut Reader<'_>) -> Read<PrivateHeader> {
    let header = PrivateHeader {
        group_id: reader.vector()?.to_vec(),
        epoch: reader.u64()?,
        content_type: content_type(reader)?,
        authenticated_data: reader.vector()?.to_vec(),
    };
    let _encrypted_sender_data = reader.vector()?;
    let _ciphertext = reader.vector()?;
    Ok(header)
}

const NEW_MEMBER_COMMIT: u8 = 4;

fn public(reader: &mut Reader<'_>) -> Read<ExternalCommit> {
    let (framed_content, mut commit) = reader.span(|r| {
        let group_id = r.vector()?.to_vec();
        let epoch = r.u64()?;
        if r.u8()? != NEW_MEMBER_COMMIT {
            return Err(Malformed("a PublicMessage that is no external Commit"));
        }
        let authenticated_data = r.vector()?.to_vec();
        if content_type(r)? != ContentType::Commit {
            return Err(Malformed("a PublicMessage that is no external Commit"));
        }
        let removes = external_proposals(r)?;
        let (leaf, path_keys) = r
            .optional(update_path)?
            .ok_or(Malformed("an external Commit without path"))?;
        Ok(ExternalCommit {
            group_id,
            epoch,
            authenticated_data,
            removes,
            leaf,
            path_keys,
            signature: Vec::new(),
            framed_content: Vec::new(),
        })
    })?;
    commit.framed_content = framed_content.to_vec();
    commit.signature = reader.vector()?.to_vec();
    let _confirmation_tag = reader.vector()?;
    Ok(commit)
}

/// ExternalInit exactly once, and removes; nothing else may be in an external Commit of version 1.
fn external_proposals(reader: &mut Reader<'_>) -> Read<Vec<u32>> {
    let mut inits = 0;
    let removes = reader.list(|r| {
        if r.u8()? != 1 {
            return Err(Malformed("a proposal by reference in an external Commit"));
        }
        match r.u16()? {
            3 => Ok(Some(r.u32()?)),
            6 => {
                inits += 1;
                r.vector().map(|_| None)
            }
            4 => Err(Malformed(
                "a PreSharedKey proposal: this version takes none in an external Commit",
            )),
            _ => Err(Malformed("a proposal that no external Commit may hold")),
        }
    })?;
    if inits != 1 {
        return Err(Malformed("not exactly one ExternalInit"));
    }
    Ok(removes.into_iter().flatten().collect())
}

fn update_path(reader: &mut Reader<'_>) -> Read<(LeafNode, Vec<Vec<u8>>)> {
    let leaf = LeafNode::read(reader)?;
    let keys = reader.list(|r| {
        let encryption_key = r.vector()?.to_vec();
        r.list(|r| Ok((r.vector()?, r.vector()?)))?;
        Ok(encryption_key)
    })?;
    Ok((leaf, keys))
}

impl ExternalCommit {
    /// FramedContent (RFC 9420 section 6), as it came.
    pub fn framed_content(&self) -> &[u8] {
        &self.framed_content
    }

    /// The joiner's signature over it.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// Verifies its signature over the GroupContext that it was made in.
    pub fn verify(&self, suite: Suite, group_context: &[u8]) -> bool {
        let mut content = Vec::with_capacity(self.framed_content.len() + group_context.len() + 4);
        content.put(&[0, 1, 0, 1]);
        content.put(&self.framed_content);
        content.put(group_context);
        suite.verify_with_label(
            &self.leaf.signature_key,
            "FramedContentTBS",
            &content,
            &self.signature,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private_message() -> Vec<u8> {
        let mut body = Vec::new();
        body.put_vector(b"group");
        body.put(&7u64.to_be_bytes());
        body.put(&[3]);
        body.put_vector(b"aad");
        body.put_vector(b"sender");
        body.put_vector(b"ciphertext");
        message(WireFormat::PrivateMessage, &body)
    }

    #[test]
    fn a_private_message_shows_its_header() {
        let expected = PrivateHeader {
            group_id: b"group".to_vec(),
            epoch: 7,
            content_type: ContentType::Commit,
            authenticated_data: b"aad".to_vec(),
        };
        assert_eq!(
            parse(&private_message(), 1000),
            Ok(Message::Private(expected))
        );
    }

    #[test]
    fn truncated_trailing_and_oversized_bytes_are_refused() {
        let bytes = private_message();
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end], 1000).is_err());
        }
        assert!(parse(&[bytes.as_slice(), &[0]].concat(), 1000).is_err());
        assert!(parse(&bytes, bytes.len() - 1).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), format in 1u8..=5) {
            let _any = parse(&bytes, 1000);
            let _any = parse(&[&[0, 1, 0, format], bytes.as_slice()].concat(), 1000);
        }
    }
}
