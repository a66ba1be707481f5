//! What a message says of itself in clear, bound to it as `authenticated_data`: its `message_id`, and for a Commit its effect on the roster.
//!
//! ```text
//! struct { uint16 component; opaque data<V>; } Item;        Item items<V>, sorted by component, each at most once
//! 0x8C01  CommitInfo, on every Commit
//! 0x8C02  message_id[16], on every member message
//!
//! struct { opaque user[16]; opaque device[16]; } Member;
//! struct { opaque domain<V>; Member members<V>; } Members;  sorted by domain and by (user, device), unique, domain never empty
//! struct { uint8 version = 1; Members added<V>; Members removed<V>; Members left_out<V>; uint64 proposals<V>;
//!          uint64 seen_seq; opaque seen_chain[32]; Extension extensions<V>; } CommitInfo;
//! ```
//!
//! Extension 1 of a CommitInfo, intermediates: `opaque certificate<V>` one after the other, DER, between the authorities that the group's policy lists
//! and the certificates of leaves that the Commit brings. It stands where a leaf was signed by an intermediate that is not listed itself.

use crate::wire::{Malformed, Read, Reader, Write, exact};

/// Component id of [`CommitInfo`].
pub const COMMIT_INFO: u16 = 0x8C01;
/// Component id of the `message_id`.
pub const MESSAGE_ID: u16 = 0x8C02;

/// Type of the extension that carries intermediate certificates.
pub const INTERMEDIATES: u16 = 1;

/// One device with its user, under a domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The vouching domain.
    pub domain: String,
    /// The user's UUID.
    pub user: [u8; 16],
    /// The device's UUID.
    pub device: [u8; 16],
}

/// A Commit's effect on the roster, and the log that its maker saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitInfo {
    /// Sorted, unique.
    pub added: Vec<Member>,
    /// Sorted, unique.
    pub removed: Vec<Member>,
    /// Devices of added users that had no KeyPackage. Sorted, unique.
    pub left_out: Vec<Member>,
    /// Seqs of the proposals committed by reference, in the Commit's order.
    pub proposals: Vec<u64>,
    /// Head of the log that the committer saw.
    pub seen_seq: u64,
    /// Its chain value.
    pub seen_chain: [u8; 32],
    /// Unknown ones are kept.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// The items of a message's `authenticated_data`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageData {
    /// Item 0x8C02.
    pub message_id: Option<[u8; 16]>,
    /// Item 0x8C01.
    pub commit_info: Option<CommitInfo>,
}

impl MessageData {
    /// The `authenticated_data` with these items.
    pub fn encode(&self) -> Vec<u8> {
        let mut items = Vec::new();
        let mut put = |component: u16, data: &[u8]| {
            items.put(&component.to_be_bytes());
            items.put_vector(data);
        };
        if let Some(info) = &self.commit_info {
            put(COMMIT_INFO, &info.encode());
        }
        if let Some(id) = &self.message_id {
            put(MESSAGE_ID, id);
        }
        let mut bytes = Vec::new();
        bytes.put_vector(&items);
        bytes
    }

    /// Reads `authenticated_data`; unknown items are passed over. Empty data has no items.
    ///
    /// # Errors
    /// Not a sorted list of items, or a known item that does not parse.
    pub fn decode(bytes: &[u8]) -> Read<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let items = exact(bytes, bytes.len(), |r| {
            r.list(|r| Ok((r.u16()?, r.vector()?)))
        })?;
        if !items.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(Malformed("items are not sorted and unique"));
        }
        let mut data = Self::default();
        for (component, content) in items {
            match component {
                COMMIT_INFO => data.commit_info = Some(CommitInfo::decode(content)?),
                MESSAGE_ID => data.message_id = Some(exact(content, 16, Reader::id)?),
                _ => {}
            }
        }
        Ok(data)
    }
}

impl CommitInfo {
    /// Intermediate certificates that the Commit carries, DER.
    ///
    /// # Errors
    /// The extension does not parse.
    pub fn intermediates(&self) -> Read<Vec<Vec<u8>>> {
        let mut certificates = Vec::new();
        for (_, data) in self.extensions.iter().filter(|e| e.0 == INTERMEDIATES) {
            let mut listed = Vec::new();
            listed.put_vector(data);
            certificates.extend(exact(&listed, listed.len(), |r| {
                r.list(|r| Ok(r.vector()?.to_vec()))
            })?);
        }
        Ok(certificates)
    }

    /// Carries these intermediate certificates; none is no extension.
    pub fn put_intermediates<'c>(&mut self, certificates: impl IntoIterator<Item = &'c [u8]>) {
        let mut data = Vec::new();
        for certificate in certificates {
            data.put_vector(certificate);
        }
        if !data.is_empty() {
            self.extensions.push((INTERMEDIATES, data));
        }
    }

    /// As in the module's text. Members are sorted; duplicates are dropped.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![1];
        for members in [&self.added, &self.removed, &self.left_out] {
            bytes.put_vector(&encode_members(members));
        }
        let proposals: Vec<u8> = self
            .proposals
            .iter()
            .flat_map(|seq| seq.to_be_bytes())
            .collect();
        bytes.put_vector(&proposals);
        bytes.put(&self.seen_seq.to_be_bytes());
        bytes.put(&self.seen_chain);
        let mut extensions = Vec::new();
        for (kind, data) in &self.extensions {
            extensions.put(&kind.to_be_bytes());
            extensions.put_vector(data);
        }
        bytes.put_vector(&extensions);
        bytes
    }

    /// As in the module's text.
    ///
    /// # Errors
    /// Another version, unsorted or repeated members, an empty domain, trailing bytes.
    pub fn decode(bytes: &[u8]) -> Read<Self> {
        exact(bytes, bytes.len(), |r| {
            if r.u8()? != 1 {
                return Err(Malformed("CommitInfo version"));
            }
            Ok(Self {
                added: decode_members(r)?,
                removed: decode_members(r)?,
                left_out: decode_members(r)?,
                proposals: r.list(Reader::u64)?,
                seen_seq: r.u64()?,
                seen_chain: r.hash()?,
                extensions: r.list(|r| Ok((r.u16()?, r.vector()?.to_vec())))?,
            })
        })
    }
}

fn encode_members(members: &[Member]) -> Vec<u8> {
    let mut members = members.to_vec();
    members.sort();
    members.dedup();
    let mut bytes = Vec::new();
    for same_domain in members.chunk_by(|a, b| a.domain == b.domain) {
        bytes.put_vector(same_domain[0].domain.as_bytes());
        let ids: Vec<u8> = same_domain
            .iter()
            .flat_map(|m| [m.user, m.device].concat())
            .collect();
        bytes.put_vector(&ids);
    }
    bytes
}

fn decode_members(reader: &mut Reader<'_>) -> Read<Vec<Member>> {
    let groups = reader.list(|r| {
        let domain = std::str::from_utf8(r.vector()?).map_err(|_| Malformed("domain"))?;
        if domain.is_empty() || domain.len() > 255 {
            return Err(Malformed("domain"));
        }
        let ids = r.list(|r| Ok((r.id()?, r.id()?)))?;
        if ids.is_empty() {
            return Err(Malformed("a domain without members"));
        }
        Ok((domain, ids))
    })?;
    let members: Vec<Member> = groups
        .into_iter()
        .flat_map(|(domain, ids)| {
            ids.into_iter().map(move |(user, device)| Member {
                domain: domain.to_owned(),
                user,
                device,
            })
        })
        .collect();
    if members.is_sorted_by(|a, b| a < b) {
        Ok(members)
    } else {
        Err(Malformed("members are not sorted and unique"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(domain: &str, n: u8) -> Member {
        Member {
            domain: domain.into(),
            user: [n; 16],
            device: [n + 100; 16],
        }
    }

    fn info() -> CommitInfo {
        CommitInfo {
            added: vec![
                member("a.example", 1),
                member("a.example", 2),
                member("b.example", 1),
            ],
            removed: vec![member("a.example", 3)],
            left_out: vec![],
            proposals: vec![4, 9],
            seen_seq: 12,
            seen_chain: [7; 32],
            extensions: vec![(9, vec![1])],
        }
    }

    #[test]
    fn it_comes_back_and_no_prefix_of_it_does() {
        let data = MessageData {
            message_id: Some([5; 16]),
            commit_info: Some(info()),
        };
        let bytes = data.encode();
        assert_eq!(MessageData::decode(&bytes), Ok(data));
        for end in 1..bytes.len() {
            assert!(MessageData::decode(&bytes[..end]).is_err(), "{end}");
        }
        assert_eq!(MessageData::decode(&[]), Ok(MessageData::default()));
    }

    #[test]
    fn the_bytes_are_these() {
        let info = CommitInfo {
            added: vec![member("a", 1)],
            seen_seq: 2,
            ..CommitInfo::default()
        };
        let mut expected = vec![1, 35, 1, b'a', 32];
        expected.extend([1; 16]);
        expected.extend([101; 16]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        expected.extend([0; 32]);
        expected.push(0);
        assert_eq!(info.encode(), expected);
    }

    #[test]
    fn unsorted_and_repeated_members_and_items_are_refused() {
        let mut bytes = vec![1];
        let mut members = Vec::new();
        members.put_vector(b"a");
        members.put_vector(&[[2u8; 16], [2; 16], [1; 16], [1; 16]].concat());
        bytes.put_vector(&members);
        bytes.extend([0, 0, 0]);
        bytes.extend([0; 40]);
        bytes.push(0);
        assert!(CommitInfo::decode(&bytes).is_err());
        let item = [0x8c, 0x02, 16]
            .iter()
            .chain(&[0; 16])
            .copied()
            .collect::<Vec<u8>>();
        let mut twice = Vec::new();
        twice.put_vector(&[item.clone(), item].concat());
        assert!(MessageData::decode(&twice).is_err());
    }

    #[test]
    fn unknown_items_are_passed_over() {
        let mut items = vec![0, 1, 2, 9, 9, 0x8c, 0x02, 16];
        items.extend([3; 16]);
        let mut bytes = Vec::new();
        bytes.put_vector(&items);
        let data = MessageData::decode(&bytes).unwrap();
        assert_eq!(data.message_id, Some([3; 16]));
    }
}
