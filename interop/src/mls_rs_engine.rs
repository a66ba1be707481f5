//! mls-rs behind a device.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, bail, ensure};
use chancery_proto::{key_package::LAST_RESORT, policy::POLICY_EXTENSION};
use mls_rs::{
    CipherSuite, Client, CryptoProvider as _, Extension, ExtensionList, Group, IdentityProvider,
    MlsMessage,
    client_builder::MlsConfig,
    crypto::SignatureSecretKey,
    extension::{
        ExtensionType, built_in::RequiredCapabilitiesExt, recommended::LastResortKeyPackageExt,
    },
    group::{CommitEffect, CommitOutput, ExportedTree, ReceivedMessage, proposal::Proposal},
    identity::{Credential, CredentialType, SigningIdentity, x509::CertificateChain},
    mls_rules::{CommitOptions, DefaultMlsRules, EncryptionOptions},
    time::MlsTime,
};
use mls_rs_core::identity::MemberValidationContext;
use mls_rs_crypto_rustcrypto::RustCryptoProvider;

use crate::engine::{Engine, Epoch, Identity, Made, Processed, Secrets};

/// mls-rs' default of a year is longer than the Delivery Service takes.
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);

fn mls(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("mls-rs: {error:?}")
}

/// Identities of the contract: one leaf certificate, whose device is who it is. The caller looks at the certificates themselves.
#[derive(Debug, Clone)]
struct Certificates;

fn certificate_of(identity: &SigningIdentity) -> anyhow::Result<&[u8]> {
    let Credential::X509(chain) = &identity.credential else {
        bail!("not an X.509 credential");
    };
    ensure!(chain.len() == 1, "not exactly one certificate");
    Ok(chain.leaf().context("an empty chain")?)
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

fn device_of(identity: &SigningIdentity) -> Result<Vec<u8>, NotOne> {
    let read = || {
        let seen = chancery_proto::certificate::read_device(certificate_of(identity)?)?;
        ensure!(
            seen.public_key == identity.signature_key.as_ref(),
            "another key than the certificate's"
        );
        Ok(seen.device.as_bytes().to_vec())
    };
    read().map_err(|error: anyhow::Error| NotOne(error.to_string()))
}

impl IdentityProvider for Certificates {
    type Error = NotOne;

    fn validate_member(
        &self,
        identity: &SigningIdentity,
        _time: Option<MlsTime>,
        _context: MemberValidationContext<'_>,
    ) -> Result<(), NotOne> {
        device_of(identity).map(|_| ())
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
        device_of(identity)
    }

    fn valid_successor(
        &self,
        old: &SigningIdentity,
        new: &SigningIdentity,
        _extensions: &ExtensionList,
    ) -> Result<bool, NotOne> {
        Ok(device_of(old)? == device_of(new)?)
    }

    fn supported_types(&self) -> Vec<CredentialType> {
        vec![CredentialType::X509]
    }
}

struct MlsRs<C: MlsConfig> {
    client: Client<C>,
    groups: HashMap<Vec<u8>, Group<C>>,
}

/// mls-rs for one device.
///
/// # Errors
/// Not a suite of its provider.
pub fn start(suite: u16, identity: &Identity<'_>) -> anyhow::Result<Box<dyn Engine>> {
    let crypto = RustCryptoProvider::default();
    let suite = CipherSuite::from(suite);
    ensure!(
        crypto.supported_cipher_suites().contains(&suite),
        "not a suite of this provider"
    );
    let chain = CertificateChain::from(vec![identity.certificate.to_vec()]);
    let signing =
        SigningIdentity::new(Credential::X509(chain), identity.public_key.to_vec().into());
    // Of Ed25519 it wants seed and public key, one after the other.
    let secret = match suite {
        CipherSuite::P256_AES128 => identity.secret.to_vec(),
        _ => [identity.secret, identity.public_key].concat(),
    };
    let secret = SignatureSecretKey::new(secret);
    let rules = DefaultMlsRules::new()
        .with_commit_options(
            CommitOptions::new()
                .with_path_required(true)
                .with_ratchet_tree_extension(false)
                .with_allow_external_commit(true)
                .with_always_out_of_band_ratchet_tree(true),
        )
        .with_encryption_options(EncryptionOptions::new(true, Default::default()));
    let client = Client::builder()
        .crypto_provider(crypto)
        .identity_provider(Certificates)
        .mls_rules(rules)
        .extension_type(ExtensionType::from(POLICY_EXTENSION))
        // openmls adds nobody by a last-resort KeyPackage whose leaf does not list that extension.
        .extension_type(ExtensionType::from(LAST_RESORT))
        .key_package_lifetime(LIFETIME)
        .signing_identity(signing, secret, suite)
        .build();
    Ok(Box::new(MlsRs {
        client,
        groups: HashMap::new(),
    }))
}

fn epoch_of<C: MlsConfig>(group: &Group<C>) -> anyhow::Result<Epoch> {
    let info = group
        .group_info_message_allowing_ext_commit(false)
        .map_err(mls)?;
    Ok(Epoch {
        group_info: info.to_bytes().map_err(mls)?,
        tree: group.export_tree().to_bytes().map_err(mls)?,
    })
}

fn made_of(output: &CommitOutput) -> anyhow::Result<Made> {
    let info = output
        .external_commit_group_info()
        .context("no GroupInfo")?;
    let tree = output.ratchet_tree().context("no tree")?;
    let welcome = output.welcome_messages().first();
    Ok(Made {
        commit: output.commit_message().to_bytes().map_err(mls)?,
        welcome: welcome
            .map(|welcome| welcome.to_bytes().map_err(mls))
            .transpose()?,
        epoch: Epoch {
            group_info: info.to_bytes().map_err(mls)?,
            tree: tree.to_bytes().map_err(mls)?,
        },
    })
}

impl<C: MlsConfig> MlsRs<C> {
    fn group(&mut self, id: &[u8]) -> anyhow::Result<&mut Group<C>> {
        self.groups.get_mut(id).context("an unknown group")
    }
}

impl<C: MlsConfig> Engine for MlsRs<C> {
    fn library(&self) -> &'static str {
        "mls-rs"
    }

    fn key_package(&mut self, last_resort: bool) -> anyhow::Result<Vec<u8>> {
        let mut extensions = ExtensionList::new();
        if last_resort {
            extensions.set_from(LastResortKeyPackageExt).map_err(mls)?;
        }
        self.client
            .generate_key_package_message(extensions, ExtensionList::new(), None)
            .map_err(mls)?
            .to_bytes()
            .map_err(mls)
    }

    fn create(&mut self, group: &[u8], policy: &[u8]) -> anyhow::Result<Epoch> {
        let policy_type = ExtensionType::from(POLICY_EXTENSION);
        let mut extensions = ExtensionList::new();
        let required = RequiredCapabilitiesExt {
            extensions: vec![policy_type],
            proposals: vec![],
            credentials: vec![CredentialType::X509],
        };
        extensions.set_from(required).map_err(mls)?;
        extensions.set(Extension::new(policy_type, policy.to_vec()));
        let mut made = self
            .client
            .create_group_with_id(group.to_vec(), extensions, ExtensionList::new(), None)
            .map_err(mls)?;
        made.write_to_storage().map_err(mls)?;
        let epoch = epoch_of(&made)?;
        self.groups.insert(group.to_vec(), made);
        Ok(epoch)
    }

    fn join(&mut self, group: &[u8], welcome: &[u8], tree: &[u8]) -> anyhow::Result<()> {
        let tree = ExportedTree::from_bytes(tree).map_err(mls)?;
        let message = MlsMessage::from_bytes(welcome).map_err(mls)?;
        let (mut joined, _) = self
            .client
            .join_group(Some(tree), &message, None)
            .map_err(mls)?;
        joined.write_to_storage().map_err(mls)?;
        self.groups.insert(group.to_vec(), joined);
        Ok(())
    }

    fn roster(&mut self, group: &[u8]) -> anyhow::Result<Vec<(u32, Vec<u8>)>> {
        let members = self.group(group)?.roster().members();
        members
            .iter()
            .map(|m| Ok((m.index, certificate_of(&m.signing_identity)?.to_vec())))
            .collect()
    }

    fn commit(
        &mut self,
        group: &[u8],
        add: &[Vec<u8>],
        remove: &[u32],
        aad: &[u8],
    ) -> anyhow::Result<Made> {
        let group = self.group(group)?;
        let mut builder = group.commit_builder().authenticated_data(aad.to_vec());
        for package in add {
            let package = MlsMessage::from_bytes(package).map_err(mls)?;
            builder = builder.add_member(package).map_err(mls)?;
        }
        for leaf in remove {
            builder = builder.remove_member(*leaf).map_err(mls)?;
        }
        made_of(&builder.build().map_err(mls)?)
    }

    fn apply_pending(&mut self, group: &[u8]) -> anyhow::Result<()> {
        let group = self.group(group)?;
        group.apply_pending_commit().map_err(mls)?;
        group.write_to_storage().map_err(mls)
    }

    fn clear_pending(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.group(group)?.clear_pending_commit();
        Ok(())
    }

    fn process(&mut self, group: &[u8], message: &[u8]) -> anyhow::Result<Processed> {
        let group = self.group(group)?;
        let message = MlsMessage::from_bytes(message).map_err(mls)?;
        let processed = match group.process_incoming_message(message).map_err(mls)? {
            ReceivedMessage::ApplicationMessage(message) => {
                Processed::Application(message.data().to_vec())
            }
            ReceivedMessage::Proposal(proposal) => Processed::Proposal(match &proposal.proposal {
                Proposal::Remove(remove) => Some(remove.to_remove()),
                _ => None,
            }),
            ReceivedMessage::Commit(commit) => Processed::Commit {
                active: !matches!(commit.effect, CommitEffect::Removed { .. }),
            },
            _ => bail!("no message of a group"),
        };
        group.write_to_storage().map_err(mls)?;
        Ok(processed)
    }

    fn send(&mut self, group: &[u8], text: &[u8], aad: &[u8]) -> anyhow::Result<Vec<u8>> {
        let group = self.group(group)?;
        let message = group
            .encrypt_application_message(text, aad.to_vec())
            .map_err(mls)?;
        group.write_to_storage().map_err(mls)?;
        message.to_bytes().map_err(mls)
    }

    fn propose_remove(&mut self, group: &[u8], leaf: u32, aad: &[u8]) -> anyhow::Result<Vec<u8>> {
        let group = self.group(group)?;
        let message = group.propose_remove(leaf, aad.to_vec()).map_err(mls)?;
        message.to_bytes().map_err(mls)
    }

    fn external(
        &mut self,
        group: &[u8],
        group_info: &[u8],
        tree: &[u8],
        aad: &[u8],
    ) -> anyhow::Result<Made> {
        let tree = ExportedTree::from_bytes(tree).map_err(mls)?;
        let (own, _) = self.client.signing_identity().map_err(mls)?;
        let own = device_of(own)?;
        let old = tree.roster().members();
        let old = old
            .iter()
            .find(|m| device_of(&m.signing_identity).is_ok_and(|device| device == own));
        let mut builder = self.client.external_commit_builder().map_err(mls)?;
        if let Some(old) = old {
            builder = builder.with_removal(old.index);
        }
        let info = MlsMessage::from_bytes(group_info).map_err(mls)?;
        let (mut joined, commit) = builder
            .with_tree_data(tree)
            .with_authenticated_data(aad.to_vec())
            .build(info)
            .map_err(mls)?;
        joined.write_to_storage().map_err(mls)?;
        let made = Made {
            commit: commit.to_bytes().map_err(mls)?,
            welcome: None,
            epoch: epoch_of(&joined)?,
        };
        self.groups.insert(group.to_vec(), joined);
        Ok(made)
    }

    fn secrets(&mut self, group: &[u8], label: &str) -> anyhow::Result<Secrets> {
        let group = self.group(group)?;
        let exporter = group
            .export_secret(label.as_bytes(), &[], 32)
            .map_err(mls)?;
        let authenticator = group.epoch_authenticator().map_err(mls)?;
        Ok(Secrets {
            epoch: group.current_epoch(),
            authenticator: authenticator.as_bytes().to_vec(),
            exporter: exporter.as_bytes().to_vec(),
        })
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        for (id, group) in &mut self.groups {
            *group = self.client.load_group(id).map_err(mls)?;
        }
        Ok(())
    }
}
