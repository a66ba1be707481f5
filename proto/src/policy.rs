//! The group's policy: GroupContext extension 0xF1C0. Members enforce it, the server reads it from the GroupInfo, only a Commit changes it.
//!
//! ```text
//! struct { uint8 version = 1; opaque home_domain<V>; uint8 past_epochs; uint8 external_join; Item items<V>; } Policy;
//! struct { uint16 type; opaque data<V>; } Item;      unknown items are kept
//! ```

use crate::wire::{Malformed, Read, Write, exact};

/// The extension's type, from the private-use range of RFC 9420 section 17.3.
pub const POLICY_EXTENSION: u16 = 0xF1C0;

/// Who may join by an external Commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExternalJoin {
    /// 0: nobody; the GroupInfo gives no external_pub.
    None,
    /// 1: a device of the roster that lost its group state and still has its key.
    #[default]
    Resync,
    /// 2: also a new device of a user in the roster, introduced by another of that user's devices.
    SameUser,
}

/// Version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The Delivery Service that orders the group.
    pub home_domain: String,
    /// How many past epochs application messages may come from, and members keep.
    pub past_epochs: u8,
    /// Who may join from outside.
    pub external_join: ExternalJoin,
    /// Roles and rules of later versions, untouched.
    pub items: Vec<(u16, Vec<u8>)>,
}

impl Policy {
    /// The default of a new group.
    pub fn for_domain(home_domain: impl Into<String>) -> Self {
        Self {
            home_domain: home_domain.into(),
            past_epochs: 1,
            external_join: ExternalJoin::default(),
            items: Vec::new(),
        }
    }

    /// The extension's data.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.put_vector(self.home_domain.as_bytes());
        bytes.put(&[
            self.past_epochs,
            match self.external_join {
                ExternalJoin::None => 0,
                ExternalJoin::Resync => 1,
                ExternalJoin::SameUser => 2,
            },
        ]);
        let mut items = Vec::new();
        for (kind, data) in &self.items {
            items.put(&kind.to_be_bytes());
            items.put_vector(data);
        }
        bytes.put_vector(&items);
        bytes
    }

    /// Reads the extension's data.
    ///
    /// # Errors
    /// Another version, an empty domain, an unknown value, trailing bytes.
    pub fn decode(bytes: &[u8]) -> Read<Self> {
        exact(bytes, 65_536, |r| {
            if r.u8()? != 1 {
                return Err(Malformed("policy version"));
            }
            let home_domain =
                std::str::from_utf8(r.vector()?).map_err(|_| Malformed("home domain"))?;
            if home_domain.is_empty() {
                return Err(Malformed("home domain"));
            }
            Ok(Self {
                home_domain: home_domain.to_owned(),
                past_epochs: r.u8()?,
                external_join: match r.u8()? {
                    0 => ExternalJoin::None,
                    1 => ExternalJoin::Resync,
                    2 => ExternalJoin::SameUser,
                    _ => return Err(Malformed("external join")),
                },
                items: r.list(|r| Ok((r.u16()?, r.vector()?.to_vec())))?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_with_what_it_does_not_know() {
        let policy = Policy {
            items: vec![(99, vec![1, 2])],
            ..Policy::for_domain("interior.example")
        };
        let bytes = policy.encode();
        assert_eq!(Policy::decode(&bytes), Ok(policy));
        for end in 0..bytes.len() {
            assert!(Policy::decode(&bytes[..end]).is_err());
        }
    }
}
