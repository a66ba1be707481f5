//! openmls' storage inside the store's transaction: what openmls writes stays or goes with everything else of the step.
//!
//! Each kind of value has its space; keys are the encoded openmls keys. Lists (queued proposals, own leaves) are one value each.

use openmls_rust_crypto::RustCrypto;
use openmls_traits::{
    OpenMlsProvider,
    storage::{CURRENT_VERSION, Key, StorageProvider, traits},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{StoreError, encoding, rows::Rows};

/// Cryptography, and storage in the transaction.
pub struct Provider<'a> {
    crypto: &'a RustCrypto,
    rows: Rows<'a>,
}

impl<'a> Provider<'a> {
    pub(super) fn new(crypto: &'a RustCrypto, rows: Rows<'a>) -> Self {
        Self { crypto, rows }
    }

    pub(super) fn rows(&self) -> &Rows<'a> {
        &self.rows
    }
}

impl<'a> OpenMlsProvider for Provider<'a> {
    type CryptoProvider = RustCrypto;
    type RandProvider = RustCrypto;
    type StorageProvider = Rows<'a>;

    fn storage(&self) -> &Rows<'a> {
        &self.rows
    }

    fn crypto(&self) -> &RustCrypto {
        self.crypto
    }

    fn rand(&self) -> &RustCrypto {
        self.crypto
    }
}

type Done<T = ()> = Result<T, StoreError>;

fn key(key: &impl Key<CURRENT_VERSION>) -> Done<Vec<u8>> {
    bytes(key)
}

fn bytes(value: &impl Serialize) -> Done<Vec<u8>> {
    postcard::to_allocvec(value).map_err(encoding)
}

fn value<T: DeserializeOwned>(bytes: &[u8]) -> Done<T> {
    postcard::from_bytes(bytes).map_err(encoding)
}

/// Key pairs of an epoch belong to a group, an epoch and a leaf.
fn epoch_key(
    group: &impl Key<CURRENT_VERSION>,
    epoch: &impl Key<CURRENT_VERSION>,
    leaf: u32,
) -> Done<Vec<u8>> {
    bytes(&(key(group)?, key(epoch)?, leaf))
}

/// A reference and its proposal, encoded.
type Queued = (Vec<u8>, Vec<u8>);

const CONFIG: &str = "mls.config";
const PROPOSALS: &str = "mls.proposals";
/// Where KeyPackages are, with their private parts.
pub(super) const KEY_PACKAGES: &str = "mls.key_packages";
const OWN_LEAVES: &str = "mls.own_leaves";
const EPOCH_KEYS: &str = "mls.epoch_keys";

impl Rows<'_> {
    fn queued(&self, group: &impl Key<CURRENT_VERSION>) -> Done<Vec<Queued>> {
        Ok(self.get(PROPOSALS, &key(group)?)?.unwrap_or_default())
    }
}

/// One value under one key: writer, reader, deleter.
macro_rules! single {
    ($space:expr, $write:ident, $read:ident, $delete:ident, $key:ident, $entity:ident, value_first) => {
        fn $write<V: traits::$entity<CURRENT_VERSION>, K: traits::$key<CURRENT_VERSION>>(&self, k: &K, v: &V) -> Done {
            self.put($space, &key(k)?, v)
        }
        fn $read<V: traits::$entity<CURRENT_VERSION>, K: traits::$key<CURRENT_VERSION>>(&self, k: &K) -> Done<Option<V>> {
            self.get($space, &key(k)?)
        }
        single!(@delete $space, $delete, $key);
    };
    ($space:expr, $write:ident, $read:ident, $delete:ident, $key:ident, $entity:ident, read_value_first) => {
        fn $write<K: traits::$key<CURRENT_VERSION>, V: traits::$entity<CURRENT_VERSION>>(&self, k: &K, v: &V) -> Done {
            self.put($space, &key(k)?, v)
        }
        fn $read<V: traits::$entity<CURRENT_VERSION>, K: traits::$key<CURRENT_VERSION>>(&self, k: &K) -> Done<Option<V>> {
            self.get($space, &key(k)?)
        }
        single!(@delete $space, $delete, $key);
    };
    ($space:expr, $write:ident, $read:ident, $delete:ident, $key:ident, $entity:ident) => {
        fn $write<K: traits::$key<CURRENT_VERSION>, V: traits::$entity<CURRENT_VERSION>>(&self, k: &K, v: &V) -> Done {
            self.put($space, &key(k)?, v)
        }
        fn $read<K: traits::$key<CURRENT_VERSION>, V: traits::$entity<CURRENT_VERSION>>(&self, k: &K) -> Done<Option<V>> {
            self.get($space, &key(k)?)
        }
        single!(@delete $space, $delete, $key);
    };
    (@delete $space:expr, $delete:ident, $key:ident) => {
        fn $delete<K: traits::$key<CURRENT_VERSION>>(&self, k: &K) -> Done {
            self.delete($space, &key(k)?)
        }
    };
}

impl StorageProvider<CURRENT_VERSION> for Rows<'_> {
    type Error = StoreError;

    single!("mls.tree", write_tree, tree, delete_tree, GroupId, TreeSync);
    single!(
        "mls.transcript",
        write_interim_transcript_hash,
        interim_transcript_hash,
        delete_interim_transcript_hash,
        GroupId,
        InterimTranscriptHash
    );
    single!(
        "mls.context",
        write_context,
        group_context,
        delete_context,
        GroupId,
        GroupContext
    );
    single!(
        "mls.confirmation",
        write_confirmation_tag,
        confirmation_tag,
        delete_confirmation_tag,
        GroupId,
        ConfirmationTag
    );
    single!(
        "mls.state",
        write_group_state,
        group_state,
        delete_group_state,
        GroupId,
        GroupState,
        value_first
    );
    single!(
        "mls.message_secrets",
        write_message_secrets,
        message_secrets,
        delete_message_secrets,
        GroupId,
        MessageSecrets
    );
    single!(
        "mls.resumption",
        write_resumption_psk_store,
        resumption_psk_store,
        delete_all_resumption_psk_secrets,
        GroupId,
        ResumptionPskStore
    );
    single!(
        "mls.own_index",
        write_own_leaf_index,
        own_leaf_index,
        delete_own_leaf_index,
        GroupId,
        LeafNodeIndex
    );
    single!(
        "mls.epoch_secrets",
        write_group_epoch_secrets,
        group_epoch_secrets,
        delete_group_epoch_secrets,
        GroupId,
        GroupEpochSecrets
    );
    single!(
        "mls.signature_keys",
        write_signature_key_pair,
        signature_key_pair,
        delete_signature_key_pair,
        SignaturePublicKey,
        SignatureKeyPair
    );
    single!(
        "mls.encryption_keys",
        write_encryption_key_pair,
        encryption_key_pair,
        delete_encryption_key_pair,
        EncryptionKey,
        HpkeKeyPair,
        read_value_first
    );
    single!(
        KEY_PACKAGES,
        write_key_package,
        key_package,
        delete_key_package,
        HashReference,
        KeyPackage
    );
    single!(
        "mls.psks",
        write_psk,
        psk,
        delete_psk,
        PskId,
        PskBundle,
        read_value_first
    );

    // openmls reads its configuration in more than one shape, which only a self-describing format can: JSON.
    fn write_mls_join_config<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        MlsGroupJoinConfig: traits::MlsGroupJoinConfig<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        config: &MlsGroupJoinConfig,
    ) -> Done {
        let json = serde_json::to_vec(config).map_err(encoding)?;
        self.put(CONFIG, &key(group_id)?, &json)
    }

    fn mls_group_join_config<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        MlsGroupJoinConfig: traits::MlsGroupJoinConfig<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
    ) -> Done<Option<MlsGroupJoinConfig>> {
        let json: Option<Vec<u8>> = self.get(CONFIG, &key(group_id)?)?;
        json.map(|json| serde_json::from_slice(&json).map_err(encoding))
            .transpose()
    }

    fn delete_group_config<GroupId: traits::GroupId<CURRENT_VERSION>>(
        &self,
        group_id: &GroupId,
    ) -> Done {
        self.delete(CONFIG, &key(group_id)?)
    }

    fn append_own_leaf_node<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        LeafNode: traits::LeafNode<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        leaf_node: &LeafNode,
    ) -> Done {
        let group = key(group_id)?;
        let mut leaves: Vec<Vec<u8>> = self.get(OWN_LEAVES, &group)?.unwrap_or_default();
        leaves.push(bytes(leaf_node)?);
        self.put(OWN_LEAVES, &group, &leaves)
    }

    fn own_leaf_nodes<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        LeafNode: traits::LeafNode<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
    ) -> Done<Vec<LeafNode>> {
        let leaves: Vec<Vec<u8>> = self.get(OWN_LEAVES, &key(group_id)?)?.unwrap_or_default();
        leaves.iter().map(|leaf| value(leaf)).collect()
    }

    fn delete_own_leaf_nodes<GroupId: traits::GroupId<CURRENT_VERSION>>(
        &self,
        group_id: &GroupId,
    ) -> Done {
        self.delete(OWN_LEAVES, &key(group_id)?)
    }

    fn queue_proposal<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        ProposalRef: traits::ProposalRef<CURRENT_VERSION>,
        QueuedProposal: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        proposal_ref: &ProposalRef,
        proposal: &QueuedProposal,
    ) -> Done {
        let mut queued = self.queued(group_id)?;
        queued.push((bytes(proposal_ref)?, bytes(proposal)?));
        self.put(PROPOSALS, &key(group_id)?, &queued)
    }

    fn queued_proposal_refs<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        ProposalRef: traits::ProposalRef<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
    ) -> Done<Vec<ProposalRef>> {
        let queued = self.queued(group_id)?;
        queued
            .iter()
            .map(|(reference, _)| value(reference))
            .collect()
    }

    fn queued_proposals<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        ProposalRef: traits::ProposalRef<CURRENT_VERSION>,
        QueuedProposal: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
    ) -> Done<Vec<(ProposalRef, QueuedProposal)>> {
        let queued = self.queued(group_id)?;
        let pairs = queued.iter();
        pairs
            .map(|(reference, proposal)| Ok((value(reference)?, value(proposal)?)))
            .collect()
    }

    fn remove_proposal<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        ProposalRef: traits::ProposalRef<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        proposal_ref: &ProposalRef,
    ) -> Done {
        let mut queued = self.queued(group_id)?;
        let removed = bytes(proposal_ref)?;
        queued.retain(|(reference, _)| *reference != removed);
        self.put(PROPOSALS, &key(group_id)?, &queued)
    }

    fn clear_proposal_queue<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        ProposalRef: traits::ProposalRef<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
    ) -> Done {
        self.delete(PROPOSALS, &key(group_id)?)
    }

    fn write_encryption_epoch_key_pairs<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        EpochKey: traits::EpochKey<CURRENT_VERSION>,
        HpkeKeyPair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        epoch: &EpochKey,
        leaf_index: u32,
        key_pairs: &[HpkeKeyPair],
    ) -> Done {
        let pairs = key_pairs.iter().map(bytes).collect::<Done<Vec<_>>>()?;
        self.put(EPOCH_KEYS, &epoch_key(group_id, epoch, leaf_index)?, &pairs)
    }

    fn encryption_epoch_key_pairs<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        EpochKey: traits::EpochKey<CURRENT_VERSION>,
        HpkeKeyPair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        epoch: &EpochKey,
        leaf_index: u32,
    ) -> Done<Vec<HpkeKeyPair>> {
        let place = epoch_key(group_id, epoch, leaf_index)?;
        let pairs: Vec<Vec<u8>> = self.get(EPOCH_KEYS, &place)?.unwrap_or_default();
        pairs.iter().map(|pair| value(pair)).collect()
    }

    fn delete_encryption_epoch_key_pairs<
        GroupId: traits::GroupId<CURRENT_VERSION>,
        EpochKey: traits::EpochKey<CURRENT_VERSION>,
    >(
        &self,
        group_id: &GroupId,
        epoch: &EpochKey,
        leaf_index: u32,
    ) -> Done {
        self.delete(EPOCH_KEYS, &epoch_key(group_id, epoch, leaf_index)?)
    }
}
