//! A member on mls-rs, written against the wire contract and nothing of our client: what somebody else's client has to do.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, bail, ensure};
use chancery_proto::{
    chain::{self, ChainInput},
    commit_info::{CommitInfo, Member as InfoMember, MessageData},
    common::v1::Reason,
    delivery::v1::{
        CommitBundle, Entry, EntryKind, SendMessageRequest, SubmitCommitRequest, Welcome,
    },
    key_package::LAST_RESORT,
    policy::{POLICY_EXTENSION, Policy},
    status::Refusal,
};
use mls_rs::{
    CipherSuite, Client, CryptoProvider as _, Extension, ExtensionList, Group, IdentityProvider,
    MlsMessage,
    client_builder::MlsConfig,
    crypto::SignatureSecretKey,
    extension::{
        ExtensionType, built_in::RequiredCapabilitiesExt, recommended::LastResortKeyPackageExt,
    },
    group::{CommitEffect, ExportedTree, ReceivedMessage, proposal::Proposal},
    identity::{Credential, CredentialType, SigningIdentity, x509::CertificateChain},
    mls_rules::{CommitOptions, DefaultMlsRules, EncryptionOptions},
    time::MlsTime,
};
use mls_rs_crypto_rustcrypto::RustCryptoProvider;
use rustls_pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status, async_trait};
use uuid::Uuid;

use crate::{
    stack::{Change, EXPORTER_LABEL, Race, Stack, State},
    wire::{Device, Person, full_tree, group_ref},
    world::{DOMAIN, World},
};

const KEY_PACKAGES: usize = 10;
/// mls-rs' default of a year is longer than the Delivery Service takes.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
const RACES: usize = 20;

fn mls(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("mls-rs: {error:?}")
}

/// Identities of the contract: one leaf certificate, whose device is who it is.
#[derive(Debug, Clone)]
struct Certificates;

fn person_of(identity: &SigningIdentity) -> anyhow::Result<Person> {
    let Credential::X509(chain) = &identity.credential else {
        bail!("not an X.509 credential");
    };
    ensure!(chain.len() == 1, "not exactly one certificate");
    let leaf = chain.leaf().context("an empty chain")?;
    let seen = chancery_proto::certificate::read_device(leaf)?;
    ensure!(
        seen.public_key == identity.signature_key.as_ref(),
        "another key than the certificate's"
    );
    Person::of(leaf)
}

/// What an identity provider says no with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotOne(String);

impl mls_rs::error::IntoAnyError for NotOne {
    fn into_dyn_error(self) -> Result<Box<dyn std::error::Error + Send + Sync>, Self> {
        Ok(Box::new(self))
    }
}

fn checked(identity: &SigningIdentity) -> Result<Person, NotOne> {
    person_of(identity).map_err(|error| NotOne(error.to_string()))
}

impl IdentityProvider for Certificates {
    type Error = NotOne;

    fn validate_member(
        &self,
        identity: &SigningIdentity,
        _time: Option<MlsTime>,
        _context: mls_rs_core::identity::MemberValidationContext<'_>,
    ) -> Result<(), NotOne> {
        checked(identity).map(|_| ())
    }

    fn validate_external_sender(
        &self,
        _identity: &SigningIdentity,
        _time: Option<MlsTime>,
        _extensions: Option<&ExtensionList>,
    ) -> Result<(), NotOne> {
        Err(NotOne("no external senders".into()))
    }

    fn identity(
        &self,
        identity: &SigningIdentity,
        _extensions: &ExtensionList,
    ) -> Result<Vec<u8>, NotOne> {
        Ok(checked(identity)?.device.as_bytes().to_vec())
    }

    fn valid_successor(
        &self,
        old: &SigningIdentity,
        new: &SigningIdentity,
        _extensions: &ExtensionList,
    ) -> Result<bool, NotOne> {
        Ok(checked(old)? == checked(new)?)
    }

    fn supported_types(&self) -> Vec<CredentialType> {
        vec![CredentialType::X509]
    }
}

/// A Commit that was made and not yet answered.
struct Pending {
    message_id: Uuid,
    request: SubmitCommitRequest,
}

/// A group beside mls-rs' own state.
struct Known<C: MlsConfig> {
    group: Group<C>,
    head_seq: u64,
    chain: [u8; 32],
    epoch_seq: u64,
    joined_seq: u64,
    /// Proposals of this epoch: where they stand, and whom they remove.
    proposals: Vec<(u64, Option<Person>)>,
    own: HashMap<Uuid, String>,
    texts: Vec<String>,
    pending: Option<Pending>,
}

/// A device on mls-rs.
pub struct MlsRs<C: MlsConfig> {
    device: Device,
    client: Client<C>,
    suite: u16,
    groups: HashMap<Vec<u8>, Known<C>>,
}

/// Enrolls a device on mls-rs and publishes KeyPackages of the suite.
///
/// # Errors
/// A service refuses.
pub async fn enroll(world: &World, handle: &str, suite: u16) -> anyhow::Result<Box<dyn Stack>> {
    let device = Device::enroll(world, handle).await?;
    let client = client(&device, suite)?;
    let mut member = MlsRs {
        device,
        client,
        suite,
        groups: HashMap::new(),
    };
    member.publish().await?;
    Ok(Box::new(member))
}

fn client(device: &Device, suite: u16) -> anyhow::Result<Client<impl MlsConfig + use<>>> {
    let crypto = RustCryptoProvider::default();
    ensure!(
        crypto
            .supported_cipher_suites()
            .contains(&CipherSuite::from(suite)),
        "not a suite of this provider"
    );
    let chain = CertificateChain::from(vec![device.certificate.clone()]);
    let identity = SigningIdentity::new(Credential::X509(chain), device.public_key.clone().into());
    // mls-rs wants seed and public key, one after the other.
    let seed = ed25519_seed(&device.pkcs8)?;
    let secret = SignatureSecretKey::new([&seed[..], &device.public_key].concat());
    let rules = DefaultMlsRules::new()
        .with_commit_options(
            CommitOptions::new()
                .with_path_required(true)
                .with_ratchet_tree_extension(false)
                .with_allow_external_commit(true)
                .with_always_out_of_band_ratchet_tree(true),
        )
        .with_encryption_options(EncryptionOptions::new(true, Default::default()));
    Ok(Client::builder()
        .crypto_provider(crypto)
        .identity_provider(Certificates)
        .mls_rules(rules)
        .extension_type(ExtensionType::from(POLICY_EXTENSION))
        // openmls adds nobody by a last-resort KeyPackage whose leaf does not list that extension.
        .extension_type(ExtensionType::from(LAST_RESORT))
        .key_package_lifetime(LIFETIME)
        .signing_identity(identity, secret, CipherSuite::from(suite))
        .build())
}

/// RFC 8410: the seed is the octet string inside the private key's octet string.
fn ed25519_seed(pkcs8: &[u8]) -> anyhow::Result<Vec<u8>> {
    let der = PrivatePkcs8KeyDer::from(pkcs8);
    let bytes = der.secret_pkcs8_der();
    let marker = [0x04, 0x22, 0x04, 0x20];
    let at = bytes
        .windows(marker.len())
        .position(|window| window == marker)
        .context("not an Ed25519 key")?;
    let seed = bytes.get(at + marker.len()..at + marker.len() + 32);
    Ok(seed.context("a short key")?.to_vec())
}

fn members(people: &[Person]) -> Vec<InfoMember> {
    let mut members: Vec<_> = people
        .iter()
        .map(|person| InfoMember {
            domain: DOMAIN.to_owned(),
            user: *person.user.as_bytes(),
            device: *person.device.as_bytes(),
        })
        .collect();
    members.sort();
    members.dedup();
    members
}

fn chain32(bytes: &[u8]) -> anyhow::Result<[u8; 32]> {
    bytes.try_into().context("a chain value of another length")
}

/// The winner's seq, when this is the refusal of a lost race.
fn stale(status: &Status) -> Option<u64> {
    let refusal = Refusal::from_status(status);
    let lost = refusal.code == Code::Aborted && refusal.reason == Some(Reason::StaleEpoch);
    lost.then(|| refusal.metadata.get("winner_seq")?.parse().ok())?
}

impl<C: MlsConfig> Known<C> {
    fn roster(&self) -> anyhow::Result<Vec<(u32, Person)>> {
        let members = self.group.roster().members();
        members
            .iter()
            .map(|m| Ok((m.index, person_of(&m.signing_identity)?)))
            .collect()
    }

    fn people(&self) -> anyhow::Result<Vec<Person>> {
        Ok(self.roster()?.into_iter().map(|(_, p)| p).collect())
    }

    fn aad(&self, id: Uuid, info: Option<CommitInfo>) -> Vec<u8> {
        MessageData {
            message_id: Some(*id.as_bytes()),
            commit_info: info,
        }
        .encode()
    }

    /// One entry: the chain, then whatever it is.
    fn apply(&mut self, id: &[u8], entry: &Entry, payload: &[u8]) -> anyhow::Result<()> {
        let value = chain::next(
            &self.chain,
            &ChainInput {
                group: id,
                seq: entry.seq,
                epoch_seq: entry.epoch_seq,
                kind: entry.kind,
                message_id: &entry.message_id,
                accepted_at_micros: entry.accepted_at_micros,
                payload_sha256: &Sha256::digest(payload).into(),
            },
        );
        ensure!(entry.seq == self.head_seq + 1, "a hole in the log");
        ensure!(
            entry.chain == value[..],
            "the chain breaks at {}",
            entry.seq
        );
        let message_id = Uuid::from_slice(&entry.message_id)?;
        if let Some(text) = self.own.remove(&message_id) {
            self.texts.push(text);
        } else if self
            .pending
            .as_ref()
            .is_some_and(|p| p.message_id == message_id)
        {
            self.pending = None;
            self.group.apply_pending_commit().map_err(mls)?;
            self.began_epoch(entry);
        } else if entry.epoch_seq >= self.joined_seq {
            self.process(entry, payload, message_id)?;
        }
        self.head_seq = entry.seq;
        self.chain = value;
        self.group.write_to_storage().map_err(mls)?;
        Ok(())
    }

    fn began_epoch(&mut self, entry: &Entry) {
        self.epoch_seq = entry.seq;
        self.proposals.clear();
    }

    fn process(&mut self, entry: &Entry, payload: &[u8], id: Uuid) -> anyhow::Result<()> {
        let before = self.people()?;
        let commit = [EntryKind::Commit, EntryKind::ExternalCommit]
            .iter()
            .any(|kind| *kind as u32 == entry.kind);
        if commit && self.pending.take().is_some() {
            self.group.clear_pending_commit();
        }
        let message = MlsMessage::from_bytes(payload).map_err(mls)?;
        let received = self.group.process_incoming_message(message).map_err(mls)?;
        let data = |aad: &[u8]| {
            let data = MessageData::decode(aad).map_err(|e| anyhow::anyhow!("{e:?}"))?;
            ensure!(
                data.message_id == Some(*id.as_bytes()),
                "the entry's id is not the sender's"
            );
            Ok(data)
        };
        match received {
            ReceivedMessage::ApplicationMessage(message) => {
                data(&message.authenticated_data)?;
                let text = String::from_utf8_lossy(message.data()).into_owned();
                self.texts.push(text);
            }
            ReceivedMessage::Proposal(proposal) => {
                data(&proposal.authenticated_data)?;
                let whom = match &proposal.proposal {
                    Proposal::Remove(remove) => {
                        let index = remove.to_remove();
                        let roster = self.roster()?;
                        roster.iter().find(|(i, _)| *i == index).map(|(_, p)| *p)
                    }
                    _ => None,
                };
                self.proposals.push((entry.seq, whom));
            }
            ReceivedMessage::Commit(commit) => {
                let data = data(&commit.authenticated_data)?;
                let info = data.commit_info.context("a Commit without CommitInfo")?;
                if let CommitEffect::Removed { .. } = commit.effect {
                    return Ok(());
                }
                let after = self.people()?;
                let (added, removed) = if commit.is_external {
                    let who = self.roster()?;
                    let who = who.iter().find(|(i, _)| *i == commit.committer);
                    let who = who.map(|(_, p)| *p).context("no committer")?;
                    let old = before.contains(&who).then_some(who);
                    (vec![who], old.into_iter().collect())
                } else {
                    (minus(&after, &before), minus(&before, &after))
                };
                ensure!(
                    info.added == members(&added) && info.removed == members(&removed),
                    "the CommitInfo is not what the Commit does"
                );
                self.began_epoch(entry);
            }
            _ => bail!("an entry that is no message of a group"),
        }
        Ok(())
    }
}

fn minus(all: &[Person], without: &[Person]) -> Vec<Person> {
    all.iter()
        .filter(|p| !without.contains(p))
        .copied()
        .collect()
}

impl<C: MlsConfig> MlsRs<C> {
    fn known(&mut self, group: &[u8]) -> anyhow::Result<&mut Known<C>> {
        self.groups.get_mut(group).context("an unknown group")
    }

    async fn publish(&mut self) -> anyhow::Result<()> {
        let mut packages = Vec::new();
        for last_resort in (0..KEY_PACKAGES).map(|_| false).chain([true]) {
            let mut extensions = ExtensionList::new();
            if last_resort {
                extensions.set_from(LastResortKeyPackageExt).map_err(mls)?;
            }
            let package = self
                .client
                .generate_key_package_message(extensions, ExtensionList::new(), None)
                .map_err(mls)?;
            packages.push(package.to_bytes().map_err(mls)?);
        }
        Ok(self.device.publish(packages).await?)
    }

    async fn join(&mut self, welcome: &Welcome) -> anyhow::Result<()> {
        let id = welcome.group.as_ref().context("no group")?.id.to_vec();
        let tree = self.device.tree(&id, welcome.epoch_seq).await?;
        let tree = ExportedTree::from_bytes(&tree).map_err(mls)?;
        let message = MlsMessage::from_bytes(&welcome.welcome).map_err(mls)?;
        let (mut group, _) = self
            .client
            .join_group(Some(tree), &message, None)
            .map_err(mls)?;
        check_policy(group.context().extensions())?;
        group.write_to_storage().map_err(mls)?;
        let known = Known {
            group,
            head_seq: welcome.seq,
            chain: chain32(&welcome.chain)?,
            epoch_seq: welcome.epoch_seq,
            joined_seq: welcome.seq,
            proposals: Vec::new(),
            own: HashMap::new(),
            texts: Vec::new(),
            pending: None,
        };
        self.groups.insert(id, known);
        Ok(self.device.acknowledge(welcome).await?)
    }

    async fn read(&mut self, group: &[u8]) -> anyhow::Result<()> {
        loop {
            let after = self.known(group)?.head_seq;
            let entries = self.device.read(group, after).await?;
            if entries.is_empty() {
                return Ok(());
            }
            for (entry, payload) in entries {
                self.known(group)?.apply(group, &entry, &payload)?;
            }
        }
    }

    /// Makes a Commit on the group as it is, and keeps it.
    async fn stage(&mut self, group: &[u8], change: &Change) -> anyhow::Result<()> {
        let packages = match change.add.as_slice() {
            [] => Vec::new(),
            add => self.device.claim(group, self.suite, add).await?,
        };
        let known = self.known(group)?;
        let id = Uuid::new_v4();
        let proposed = known.proposals.iter().filter_map(|(_, whom)| *whom);
        let mut removed: Vec<Person> = proposed.collect();
        let direct = minus(&change.remove, &removed);
        removed.extend(&direct);
        let info = CommitInfo {
            added: members(&change.add),
            removed: members(&removed),
            proposals: known.proposals.iter().map(|(seq, _)| *seq).collect(),
            seen_seq: known.head_seq,
            seen_chain: known.chain,
            ..CommitInfo::default()
        };
        let aad = known.aad(id, Some(info));
        let roster = known.roster()?;
        let epoch_seq = known.epoch_seq;
        let mut builder = known.group.commit_builder().authenticated_data(aad);
        for package in &packages {
            let package = MlsMessage::from_bytes(package).map_err(mls)?;
            builder = builder.add_member(package).map_err(mls)?;
        }
        for person in &direct {
            let found = roster.iter().find(|(_, p)| p == person);
            let (index, _) = found.context("nobody to remove")?;
            builder = builder.remove_member(*index).map_err(mls)?;
        }
        let output = builder.build().map_err(mls)?;
        let tree = output.ratchet_tree().context("no tree")?;
        let info = output
            .external_commit_group_info()
            .context("no GroupInfo")?;
        let welcomes = output.welcome_messages().iter();
        let bundle = CommitBundle {
            message_id: id.as_bytes().to_vec().into(),
            commit: output.commit_message().to_bytes().map_err(mls)?.into(),
            welcomes: welcomes
                .map(|w| Ok(w.to_bytes().map_err(mls)?.into()))
                .collect::<anyhow::Result<_>>()?,
            group_info: info.to_bytes().map_err(mls)?.into(),
            tree: Some(full_tree(&tree.to_bytes().map_err(mls)?)?),
            ..CommitBundle::default()
        };
        known.pending = Some(Pending {
            message_id: id,
            request: SubmitCommitRequest {
                group: group_ref(group),
                bundles: vec![bundle],
                epoch_seq,
            },
        });
        Ok(())
    }
}

/// The policy is there, readable, and of this home.
fn check_policy(extensions: &ExtensionList) -> anyhow::Result<()> {
    let policy = extensions
        .get(ExtensionType::from(POLICY_EXTENSION))
        .context("a group without a policy")?;
    let policy = Policy::decode(&policy.extension_data).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    ensure!(policy.home_domain == DOMAIN, "a group of another home");
    Ok(())
}

#[async_trait(?Send)]
impl<C: MlsConfig + 'static> Stack for MlsRs<C> {
    fn library(&self) -> &'static str {
        "mls-rs"
    }

    fn person(&self) -> Person {
        self.device.person
    }

    async fn create(&mut self) -> anyhow::Result<Vec<u8>> {
        let id = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
        let mut extensions = ExtensionList::new();
        let required = RequiredCapabilitiesExt {
            extensions: vec![ExtensionType::from(POLICY_EXTENSION)],
            proposals: vec![],
            credentials: vec![CredentialType::X509],
        };
        extensions.set_from(required).map_err(mls)?;
        extensions.set(Extension::new(
            ExtensionType::from(POLICY_EXTENSION),
            Policy::for_domain(DOMAIN).encode(),
        ));
        let mut group = self
            .client
            .create_group_with_id(id.clone(), extensions, ExtensionList::new(), None)
            .map_err(mls)?;
        group.write_to_storage().map_err(mls)?;
        let info = group
            .group_info_message_allowing_ext_commit(false)
            .map_err(mls)?;
        let tree = full_tree(&group.export_tree().to_bytes().map_err(mls)?)?;
        let info = info.to_bytes().map_err(mls)?;
        self.device
            .create_group(&id, self.suite, info, tree)
            .await?;
        let known = Known {
            group,
            head_seq: 0,
            chain: chain::start(),
            epoch_seq: 0,
            joined_seq: 0,
            proposals: Vec::new(),
            own: HashMap::new(),
            texts: Vec::new(),
            pending: None,
        };
        self.groups.insert(id.clone(), known);
        Ok(id)
    }

    async fn sync(&mut self, group: &[u8]) -> anyhow::Result<()> {
        for welcome in self.device.welcomes().await? {
            self.join(&welcome).await?;
        }
        self.read(group).await
    }

    async fn commit(&mut self, group: &[u8], change: &Change) -> anyhow::Result<u64> {
        for _ in 0..RACES {
            self.read(group).await?;
            self.stage(group, change).await?;
            if let Race::Won { seq } = self.submit_prepared(group).await? {
                return Ok(seq);
            }
        }
        bail!("lost {RACES} races in a row")
    }

    async fn prepare(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.read(group).await?;
        self.stage(group, &Change::default()).await
    }

    async fn submit_prepared(&mut self, group: &[u8]) -> anyhow::Result<Race> {
        let pending = self.known(group)?.pending.as_ref();
        let request = pending.context("nothing was prepared")?.request.clone();
        match self.device.submit(request).await {
            Ok(answer) => {
                let seq = answer.results.first().context("no result")?.seq;
                self.read(group).await?;
                Ok(Race::Won { seq })
            }
            Err(status) => {
                let winner_seq = stale(&status).ok_or(status)?;
                self.read(group).await?;
                Ok(Race::Lost { winner_seq })
            }
        }
    }

    async fn send(&mut self, group: &[u8], text: &str) -> anyhow::Result<u64> {
        if !self.known(group)?.proposals.is_empty() {
            self.commit(group, &Change::default()).await?;
        }
        let known = self.known(group)?;
        let id = Uuid::new_v4();
        let aad = known.aad(id, None);
        let message = known
            .group
            .encrypt_application_message(text.as_bytes(), aad)
            .map_err(mls)?;
        known.group.write_to_storage().map_err(mls)?;
        known.own.insert(id, text.to_owned());
        let request = SendMessageRequest {
            group: group_ref(group),
            message_id: id.as_bytes().to_vec().into(),
            message: message.to_bytes().map_err(mls)?.into(),
            epoch_seq: known.epoch_seq,
            ..SendMessageRequest::default()
        };
        Ok(self.device.send(request).await?)
    }

    async fn propose_remove(&mut self, group: &[u8], whom: Person) -> anyhow::Result<Option<u64>> {
        self.read(group).await?;
        let known = self.known(group)?;
        let id = Uuid::new_v4();
        let aad = known.aad(id, None);
        let roster = known.roster()?;
        let found = roster.iter().find(|(_, p)| *p == whom);
        let (index, _) = found.context("nobody to remove")?;
        let message = known.group.propose_remove(*index, aad).map_err(mls)?;
        let request = SendMessageRequest {
            group: group_ref(group),
            message_id: id.as_bytes().to_vec().into(),
            message: message.to_bytes().map_err(mls)?.into(),
            epoch_seq: known.epoch_seq,
            ..SendMessageRequest::default()
        };
        let seq = self.device.send(request).await?;
        // mls-rs keeps its own proposal; its entry in the log brings nothing new.
        let known = self.known(group)?;
        known.own.insert(id, String::new());
        self.read(group).await?;
        let known = self.known(group)?;
        known.texts.retain(|text| !text.is_empty());
        known.proposals.push((seq, Some(whom)));
        Ok(Some(seq))
    }

    async fn resync(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        for _ in 0..RACES {
            let info = self.device.group_info(group).await?;
            let tree = self.device.tree(group, info.epoch_seq).await?;
            let tree = ExportedTree::from_bytes(&tree).map_err(mls)?;
            let own = self.device.person;
            let old = tree.roster().members();
            let old = old
                .iter()
                .find(|m| person_of(&m.signing_identity).is_ok_and(|p| p == own));
            let id = Uuid::new_v4();
            let data = MessageData {
                message_id: Some(*id.as_bytes()),
                commit_info: Some(CommitInfo {
                    added: members(&[own]),
                    removed: members(&[own]),
                    seen_seq: info.head_seq,
                    seen_chain: chain32(&info.chain)?,
                    ..CommitInfo::default()
                }),
            };
            let mut builder = self.client.external_commit_builder().map_err(mls)?;
            if let Some(old) = old {
                builder = builder.with_removal(old.index);
            }
            let message = MlsMessage::from_bytes(&info.group_info).map_err(mls)?;
            let (mut state, commit) = builder
                .with_tree_data(tree)
                .with_authenticated_data(data.encode())
                .build(message)
                .map_err(mls)?;
            let new_info = state
                .group_info_message_allowing_ext_commit(false)
                .map_err(mls)?;
            let tree = full_tree(&state.export_tree().to_bytes().map_err(mls)?)?;
            let bundle = CommitBundle {
                message_id: id.as_bytes().to_vec().into(),
                commit: commit.to_bytes().map_err(mls)?.into(),
                group_info: new_info.to_bytes().map_err(mls)?.into(),
                tree: Some(tree),
                ..CommitBundle::default()
            };
            let request = SubmitCommitRequest {
                group: group_ref(group),
                bundles: vec![bundle],
                epoch_seq: info.epoch_seq,
            };
            let result = match self.device.submit(request).await {
                Ok(answer) => answer.results.into_iter().next().context("no result")?,
                Err(status) => {
                    stale(&status).ok_or(status)?;
                    continue;
                }
            };
            state.write_to_storage().map_err(mls)?;
            let before = self.groups.remove(group);
            let known = Known {
                group: state,
                head_seq: result.seq,
                chain: chain32(&result.chain)?,
                epoch_seq: result.epoch_seq,
                joined_seq: result.seq,
                proposals: Vec::new(),
                own: HashMap::new(),
                texts: before.map(|known| known.texts).unwrap_or_default(),
                pending: None,
            };
            self.groups.insert(group.to_vec(), known);
            return Ok(result.seq);
        }
        bail!("lost {RACES} races in a row")
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        let ids: Vec<Vec<u8>> = self.groups.keys().cloned().collect();
        for id in ids {
            let loaded = self.client.load_group(&id).map_err(mls)?;
            self.known(&id)?.group = loaded;
        }
        Ok(())
    }

    fn state(&mut self, group: &[u8]) -> anyhow::Result<State> {
        let known = self.known(group)?;
        let exporter = known
            .group
            .export_secret(EXPORTER_LABEL.as_bytes(), &[], 32)
            .map_err(mls)?;
        let authenticator = known.group.epoch_authenticator().map_err(mls)?;
        let mut members = known.people()?;
        members.sort();
        Ok(State {
            epoch: known.group.current_epoch(),
            epoch_authenticator: authenticator.as_bytes().to_vec(),
            exporter: exporter.as_bytes().to_vec(),
            members,
        })
    }

    fn texts(&mut self, group: &[u8]) -> anyhow::Result<Vec<String>> {
        Ok(self.known(group)?.texts.clone())
    }
}
