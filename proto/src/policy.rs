//! The group's policy: GroupContext extension 0xF1C0. Members enforce it, the server reads it from the GroupInfo, only a Commit changes it.
//!
//! ```text
//! struct { uint8 version = 1; opaque home_domain<V>; uint8 past_epochs; uint8 external_join; Item items<V>; } Policy;
//! struct { uint16 type; opaque data<V>; } Item;      unknown items are kept
//!
//! item 1, authorities, at most once:
//! struct { opaque domain<V>; opaque keys[32]<V>; } Authority;      raw Ed25519 keys, at least one
//! Authority authorities<V>;                                        sorted by domain, unique
//! ```
//!
//! A device of a domain that is listed has a certificate signed by one of the domain's keys, or by an intermediate that one of them signed.

use std::collections::BTreeMap;

use crate::wire::{Malformed, Read, Reader, Write, exact};

/// The extension's type, from the private-use range of RFC 9420 section 17.3.
pub const POLICY_EXTENSION: u16 = 0xF1C0;

/// Type of the item that lists the keys which sign the devices of domains.
pub const AUTHORITIES_ITEM: u16 = 1;

/// The raw Ed25519 keys that sign a domain's devices, by domain.
pub type Authorities = BTreeMap<String, Vec<[u8; 32]>>;

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

    /// The same policy with this list of authorities; an empty list is no item.
    #[must_use]
    pub fn with_authorities(mut self, authorities: &Authorities) -> Self {
        self.items.retain(|(kind, _)| *kind != AUTHORITIES_ITEM);
        if authorities.is_empty() {
            return self;
        }
        let mut list = Vec::new();
        for (domain, keys) in authorities {
            list.put_vector(domain.as_bytes());
            list.put_vector(keys.as_flattened());
        }
        let mut data = Vec::new();
        data.put_vector(&list);
        self.items.push((AUTHORITIES_ITEM, data));
        self
    }

    /// The keys that sign the devices of the listed domains; empty where the group lists none.
    ///
    /// # Errors
    /// The item stands twice, is not sorted and unique, or names a domain without keys.
    pub fn authorities(&self) -> Read<Authorities> {
        let mut items = self.items.iter().filter(|item| item.0 == AUTHORITIES_ITEM);
        let Some((_, data)) = items.next() else {
            return Ok(Authorities::new());
        };
        if items.next().is_some() {
            return Err(Malformed("authorities stand twice"));
        }
        let listed = exact(data, data.len(), |r| {
            r.list(|r| {
                let domain = std::str::from_utf8(r.vector()?).map_err(|_| Malformed("domain"))?;
                let keys = r.list(Reader::hash)?;
                if domain.is_empty() || keys.is_empty() {
                    return Err(Malformed("an authority without domain or keys"));
                }
                Ok((domain.to_owned(), keys))
            })
        })?;
        if !listed.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(Malformed("authorities are not sorted and unique"));
        }
        Ok(listed.into_iter().collect())
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

    #[test]
    fn authorities_come_back_and_an_item_that_is_wrong_is_an_error() {
        let plain = Policy::for_domain("interior.example");
        assert_eq!(plain.authorities(), Ok(Authorities::new()));
        let listed: Authorities = [
            ("foreign.example".to_owned(), vec![[1; 32]]),
            ("interior.example".to_owned(), vec![[2; 32], [3; 32]]),
        ]
        .into();
        let policy = plain.clone().with_authorities(&listed);
        let policy = Policy::decode(&policy.encode()).unwrap();
        assert_eq!(policy.authorities(), Ok(listed.clone()));
        assert_eq!(policy.with_authorities(&Authorities::new()), plain);
        let item = |data: &[u8]| Policy {
            items: vec![(AUTHORITIES_ITEM, data.to_vec())],
            ..plain.clone()
        };
        for wrong in [&[][..], &[3, 1, b'a', 0], &[4, 1, b'a', 1, 9], &[0, 0]] {
            assert!(item(wrong).authorities().is_err(), "{wrong:?}");
        }
        let mut twice = plain.with_authorities(&listed);
        twice.items.push(twice.items[0].clone());
        assert!(twice.authorities().is_err());
    }
}
