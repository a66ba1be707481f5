//! Another member's place in a group, as openmls keeps it: beside the leaf's index in the group's state, the secret tree remembers which of its leaves is the
//! own one. openmls keeps that to itself, so it is changed where it is stored.

use client_cli::{core::CoreError, core::records::GroupName, store::Step};
use openmls::{group::GroupId, prelude::LeafNodeIndex};
use openmls_traits::{OpenMlsProvider as _, storage::StorageProvider as _};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
    ser::SerializeTuple as _,
};

/// Where the client's store has the secrets of a group's messages.
const SPACE: &str = "mls.message_secrets";

/// The secrets of a group without past epochs, as far as the own leaf.
#[derive(Serialize, Deserialize)]
struct Secrets {
    max_epochs: usize,
    past_epochs: Vec<Nothing>,
    sender_data: Vec<u8>,
    membership: Vec<u8>,
    confirmation: Vec<u8>,
    context: Vec<u8>,
    own_index: u32,
    rest: Rest,
}

/// Past epochs are not read here.
#[derive(Serialize, Deserialize)]
enum Nothing {}

/// Everything up to the end, as it is.
struct Rest(Vec<u8>);

impl Serialize for Rest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in &self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Rest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ToTheEnd;

        impl<'de> Visitor<'de> for ToTheEnd {
            type Value = Rest;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Rest, A::Error> {
                let mut rest = Vec::new();
                // There is no length: the end is where no more bytes come.
                while let Ok(Some(byte)) = bytes.next_element() {
                    rest.push(byte);
                }
                Ok(Rest(rest))
            }
        }

        deserializer.deserialize_tuple(usize::MAX, ToTheEnd)
    }
}

/// Takes a leaf's place, for as long as the step is not undone.
///
/// # Errors
/// A group with past epochs, or the store.
pub fn take(step: &Step<'_>, name: &GroupName, leaf: LeafNodeIndex) -> Result<(), CoreError> {
    drop(step.take_loaded(&name.id));
    let id = GroupId::from_slice(&name.id);
    let storage = step.provider().storage();
    storage.write_own_leaf_index(&id, &LeafNodeIndex::new(leaf.u32()))?;
    let length = u8::try_from(name.id.len()).map_err(|_| CoreError::Unknown)?;
    let key = [&[length][..], &name.id].concat();
    let secrets: Option<Secrets> = step.get(SPACE, &key)?;
    let mut secrets = secrets.ok_or(CoreError::Unknown)?;
    secrets.own_index = leaf.u32();
    Ok(step.put(SPACE, &key, &secrets)?)
}
