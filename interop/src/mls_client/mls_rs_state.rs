//! What a handle of [`super::mls_rs_peer`] holds and does.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mls_rs::{
    CipherSuite, Client, CryptoProvider as _, Extension, ExtensionList, Group, MlsMessage,
    MlsRules,
    client_builder::{BaseInMemoryConfig, WithCryptoProvider, WithIdentityProvider, WithMlsRules},
    crypto::SignatureSecretKey,
    external_client::ExternalClient,
    group::{
        CommitEffect, CommitMessageDescription, ExportedTree, GroupContext, ReceivedMessage, Roster,
    },
    identity::{
        Credential, SigningIdentity,
        basic::{BasicCredential, BasicIdentityProvider},
    },
    mls_rules::{CommitDirection, CommitOptions, CommitSource, EncryptionOptions, ProposalBundle},
    psk::ExternalPskId,
};
use mls_rs_crypto_rustcrypto::RustCryptoProvider;

use super::{
    peer::{Answer, Refusal, suite_of},
    proto::{Extension as WireExtension, *},
};

/// mls-rs asks its rules at each Commit; the requests of the protocol set them.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules(Arc<Mutex<(CommitOptions, EncryptionOptions)>>);

impl Rules {
    fn lock(&self) -> MutexGuard<'_, (CommitOptions, EncryptionOptions)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn encrypt_handshake(&self, encrypt: bool) {
        self.lock().1.encrypt_control_messages = encrypt;
    }

    pub(super) fn commit(&self, force_path: bool, external_tree: bool) {
        let mut rules = self.lock();
        rules.0.path_required = force_path;
        rules.0.ratchet_tree_extension = !external_tree;
        rules.0.always_out_of_band_ratchet_tree = external_tree;
    }
}

impl MlsRules for Rules {
    type Error = Infallible;

    fn filter_proposals(
        &self,
        _direction: CommitDirection,
        _source: CommitSource,
        _roster: &Roster<'_>,
        _context: &GroupContext,
        proposals: ProposalBundle,
    ) -> Result<ProposalBundle, Infallible> {
        Ok(proposals)
    }

    fn commit_options(
        &self,
        _roster: &Roster<'_>,
        _context: &GroupContext,
        _proposals: &ProposalBundle,
    ) -> Result<CommitOptions, Infallible> {
        Ok(self.lock().0)
    }

    fn encryption_options(
        &self,
        _roster: &Roster<'_>,
        _context: &GroupContext,
    ) -> Result<EncryptionOptions, Infallible> {
        Ok(self.lock().1)
    }
}

pub(super) type Config = WithIdentityProvider<
    BasicIdentityProvider,
    WithCryptoProvider<RustCryptoProvider, WithMlsRules<Rules, BaseInMemoryConfig>>,
>;

/// A key and whose it is.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) secret: SignatureSecretKey,
    pub(super) identity: SigningIdentity,
}

/// One identity with its client: a pending join, then a state.
pub(super) struct Member {
    pub(super) client: Client<Config>,
    pub(super) rules: Rules,
    pub(super) signer: Signer,
    pub(super) group: Option<Group<Config>>,
    /// Framed proposals of the current epoch that the group knows already.
    pub(super) known: HashSet<Vec<u8>>,
}

pub(super) fn bytes(message: &MlsMessage) -> Answer<Vec<u8>> {
    message.to_bytes().map_err(Refusal::failed)
}

pub(super) fn message(bytes: &[u8]) -> Answer<MlsMessage> {
    MlsMessage::from_bytes(bytes)
        .map_err(|error| Refusal::invalid(format!("no MLSMessage: {error:?}")))
}

/// Empty: there is none.
pub(super) fn tree_of(bytes: &[u8]) -> Answer<Option<ExportedTree<'static>>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    ExportedTree::from_bytes(bytes)
        .map(Some)
        .map_err(|error| Refusal::invalid(format!("no ratchet tree: {error:?}")))
}

pub(super) fn extensions(extensions: Vec<WireExtension>) -> Answer<ExtensionList> {
    let list = extensions.into_iter().map(|extension| {
        let kind = suite_of(extension.extension_type)?;
        Ok(Extension::new(kind.into(), extension.extension_data))
    });
    Ok(list.collect::<Answer<Vec<_>>>()?.into())
}

pub(super) fn leaf_of(roster: &Roster<'_>, identity: &[u8]) -> Answer<u32> {
    let wanted = BasicCredential::new(identity.to_vec()).into_credential();
    roster
        .members()
        .iter()
        .find(|member| member.signing_identity.credential == wanted)
        .map(|member| member.index)
        .ok_or_else(|| {
            Refusal::Invalid(format!(
                "{} is no member",
                String::from_utf8_lossy(identity)
            ))
        })
}

pub(super) fn suite(number: u32) -> Answer<CipherSuite> {
    let suite = CipherSuite::from(suite_of(number)?);
    if RustCryptoProvider::default()
        .supported_cipher_suites()
        .contains(&suite)
    {
        return Ok(suite);
    }
    Err(Refusal::Unsupported(format!(
        "this provider of mls-rs has no suite {number}"
    )))
}

/// Looks at a group from outside, and proposes if there is a signer.
pub(super) fn outside(
    signer: Option<&Signer>,
    group_info: &[u8],
    ratchet_tree: &[u8],
) -> Answer<mls_rs::external_client::ExternalGroup<impl mls_rs::external_client::builder::MlsConfig>>
{
    let mut builder = ExternalClient::builder()
        .crypto_provider(RustCryptoProvider::default())
        .identity_provider(BasicIdentityProvider::new());
    if let Some(signer) = signer {
        builder = builder.signer(signer.secret.clone(), signer.identity.clone());
    }
    builder
        .build()
        .observe_group(message(group_info)?, tree_of(ratchet_tree)?, None)
        .map_err(Refusal::failed)
}

impl Member {
    pub(super) fn new(suite: CipherSuite, signer: Signer) -> Self {
        let rules = Rules::default();
        let client = Client::builder()
            .crypto_provider(RustCryptoProvider::default())
            .identity_provider(BasicIdentityProvider::new())
            .mls_rules(rules.clone())
            .signing_identity(signer.identity.clone(), signer.secret.clone(), suite)
            .build();
        Self {
            client,
            rules,
            signer,
            group: None,
            known: HashSet::new(),
        }
    }

    pub(super) fn group(&mut self) -> Answer<&mut Group<Config>> {
        self.group
            .as_mut()
            .ok_or_else(|| Refusal::invalid("the handle is no state of a group yet"))
    }

    pub(super) fn authenticator(&mut self) -> Answer<Vec<u8>> {
        let authenticator = self
            .group()?
            .epoch_authenticator()
            .map_err(Refusal::failed)?;
        Ok(authenticator.as_bytes().to_vec())
    }

    pub(super) fn tree(&mut self, external: bool) -> Answer<Vec<u8>> {
        if !external {
            return Ok(Vec::new());
        }
        self.group()?
            .export_tree()
            .to_bytes()
            .map_err(Refusal::failed)
    }

    pub(super) fn take_in(&mut self, proposals: &[Vec<u8>]) -> Answer<()> {
        for bytes in proposals {
            if !self.known.insert(bytes.clone()) {
                continue;
            }
            self.group()?
                .process_incoming_message(message(bytes)?)
                .map_err(Refusal::failed)?;
        }
        Ok(())
    }

    pub(super) fn proposed(&mut self, made: &MlsMessage) -> Answer<ProposalResponse> {
        let proposal = bytes(made)?;
        self.known.insert(proposal.clone());
        Ok(ProposalResponse { proposal })
    }

    pub(super) fn commit(&mut self, request: CommitRequest) -> Answer<CommitResponse> {
        self.take_in(&request.by_reference)?;
        self.rules.commit(request.force_path, request.external_tree);
        let group = self.group()?;
        let removes = request
            .by_value
            .iter()
            .filter(|described| described.proposal_type == b"remove")
            .map(|described| leaf_of(&group.roster(), &described.removed_id))
            .collect::<Answer<Vec<_>>>()?;
        let mut builder = group.commit_builder();
        for leaf in removes {
            builder = builder.remove_member(leaf).map_err(Refusal::failed)?;
        }
        for described in request.by_value {
            builder = match described.proposal_type.as_slice() {
                b"remove" => Ok(builder),
                b"add" => builder.add_member(message(&described.key_package)?),
                b"externalPSK" => builder.add_external_psk(ExternalPskId::new(described.psk_id)),
                b"resumptionPSK" => builder.add_resumption_psk(described.epoch_id),
                b"groupContextExtensions" => {
                    builder.set_group_context_ext(extensions(described.extensions)?)
                }
                other => {
                    return Err(Refusal::Invalid(format!(
                        "a Commit by value has no {}",
                        String::from_utf8_lossy(other)
                    )));
                }
            }
            .map_err(Refusal::failed)?;
        }
        let output = builder.build().map_err(Refusal::failed)?;
        let welcome = output.welcome_messages().first();
        let tree = output.ratchet_tree().filter(|_| request.external_tree);
        Ok(CommitResponse {
            commit: bytes(output.commit_message())?,
            welcome: welcome.map(bytes).transpose()?.unwrap_or_default(),
            ratchet_tree: tree
                .map(|tree| tree.to_bytes().map_err(Refusal::failed))
                .transpose()?
                .unwrap_or_default(),
        })
    }

    pub(super) fn handle_commit(
        &mut self,
        request: &HandleCommitRequest,
    ) -> Answer<CommitMessageDescription> {
        self.take_in(&request.proposal)?;
        let received = self
            .group()?
            .process_incoming_message(message(&request.commit)?)
            .map_err(Refusal::failed)?;
        let ReceivedMessage::Commit(commit) = received else {
            return Err(Refusal::invalid("no Commit"));
        };
        self.known.clear();
        Ok(commit)
    }

    pub(super) fn apply_pending(&mut self) -> Answer<CommitMessageDescription> {
        let commit = self
            .group()?
            .apply_pending_commit()
            .map_err(Refusal::failed)?;
        self.known.clear();
        Ok(commit)
    }

    /// After a Commit to a ReInit: a KeyPackage for the new group, with a key of its suite.
    pub(super) fn reinit(
        &mut self,
        number: u32,
        commit: CommitMessageDescription,
        key: impl FnOnce(CipherSuite, &[u8]) -> Answer<Signer>,
    ) -> Answer<HandleReInitCommitResponse> {
        let CommitEffect::ReInit(reinit) = commit.effect else {
            return Err(Refusal::invalid("the Commit holds no ReInit"));
        };
        let Credential::Basic(own) = &self.signer.identity.credential else {
            return Err(Refusal::invalid("no basic credential"));
        };
        self.signer = key(reinit.proposal.new_cipher_suite(), own.identifier())?;
        let signer = self.signer.clone();
        let package = self
            .group()?
            .clone()
            .get_reinit_client(Some(signer.secret), Some(signer.identity))
            .and_then(|client| client.generate_key_package(None))
            .map_err(Refusal::failed)?;
        Ok(HandleReInitCommitResponse {
            reinit_id: number,
            key_package: bytes(&package)?,
            epoch_authenticator: self.authenticator()?,
        })
    }

    /// The group that a resumption made: this handle is a state of it from now on.
    pub(super) fn subgroup(
        &mut self,
        number: u32,
        made: (Group<Config>, Vec<MlsMessage>),
        external_tree: bool,
    ) -> Answer<CreateSubgroupResponse> {
        let (group, welcomes) = made;
        self.group = Some(group);
        let welcome = welcomes.first();
        Ok(CreateSubgroupResponse {
            state_id: number,
            welcome: welcome.map(bytes).transpose()?.unwrap_or_default(),
            ratchet_tree: self.tree(external_tree)?,
            epoch_authenticator: self.authenticator()?,
        })
    }

    pub(super) fn external(
        &mut self,
        request: ExternalJoinRequest,
    ) -> Answer<ExternalJoinResponse> {
        self.rules.encrypt_handshake(request.encrypt_handshake);
        let prior = if request.remove_prior {
            let seen = outside(None, &request.group_info, &request.ratchet_tree)?;
            Some(leaf_of(&seen.roster(), &request.identity)?)
        } else {
            None
        };
        let mut builder = self
            .client
            .external_commit_builder()
            .map_err(Refusal::failed)?;
        if let Some(prior) = prior {
            builder = builder.with_removal(prior);
        }
        if let Some(tree) = tree_of(&request.ratchet_tree)? {
            builder = builder.with_tree_data(tree);
        }
        let mut secrets = self.client.secret_store();
        for psk in request.psks {
            let id = ExternalPskId::new(psk.psk_id);
            secrets.insert(id.clone(), psk.psk_secret.into());
            builder = builder.with_external_psk(id);
        }
        let (group, commit) = builder
            .build(message(&request.group_info)?)
            .map_err(Refusal::failed)?;
        self.group = Some(group);
        Ok(ExternalJoinResponse {
            state_id: 0,
            commit: bytes(&commit)?,
            epoch_authenticator: self.authenticator()?,
        })
    }

    /// The secrets of the one KeyPackage that this member made.
    pub(super) fn secrets(&self) -> Answer<(Vec<u8>, Vec<u8>)> {
        let made = self.client.key_package_store().key_packages();
        let (_, data) = made
            .first()
            .ok_or_else(|| Refusal::Failed("the KeyPackage is lost".into()))?;
        Ok((data.init_key.to_vec(), data.leaf_node_key.to_vec()))
    }
}
