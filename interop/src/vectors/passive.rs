//! A group that is joined by a Welcome and followed, Commit by Commit, on our client's store.

use anyhow::{Context as _, bail, ensure};
use client_cli::store::{Step, Store, StoreError};
use openmls::{
    prelude::{
        Ciphersuite, KeyPackage, KeyPackageBundle, KeyPackageIn,
        MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY, MlsGroup, MlsGroupJoinConfig, MlsMessageBodyIn,
        MlsMessageIn, ProcessedMessageContent, ProtocolMessage, ProtocolVersion, RatchetTreeIn,
        StagedWelcome, tls_codec::Deserialize as _,
    },
    schedule::{ExternalPsk, PreSharedKeyId, Psk},
};
use openmls_traits::{OpenMlsProvider, storage::StorageProvider as _};
use serde::Deserialize;
use serde_json::json;

use super::{Hex, trees::suite, unsupported};

/// Past epochs whose secrets a recorded run may ask for.
const PAST_EPOCHS: usize = 64;

#[derive(Deserialize)]
pub(super) struct Passive {
    cipher_suite: u16,
    external_psks: Vec<ExternalSecret>,
    key_package: Hex,
    encryption_priv: Hex,
    init_priv: Hex,
    welcome: Hex,
    ratchet_tree: Option<Hex>,
    initial_epoch_authenticator: Hex,
    epochs: Vec<Epoch>,
}

#[derive(Deserialize)]
struct ExternalSecret {
    psk_id: Hex,
    psk: Hex,
}

#[derive(Deserialize)]
struct Epoch {
    proposals: Vec<Hex>,
    commit: Hex,
    epoch_authenticator: Hex,
}

/// A failure inside a transaction of the store.
#[derive(Debug)]
struct Failure(anyhow::Error);

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self(error.into())
    }
}

pub(super) fn play(case: Passive) -> anyhow::Result<()> {
    suite(case.cipher_suite)?;
    let mut store = Store::in_memory()?;
    let mut group = store
        .step(|step| join(step, &case).map_err(Failure))
        .map_err(|failure| failure.0)?;
    for (number, epoch) in case.epochs.iter().enumerate() {
        store
            .step(|step| follow(step, &mut group, epoch).map_err(Failure))
            .map_err(|failure| failure.0)
            .with_context(|| format!("epoch {number}"))?;
    }
    Ok(())
}

fn body(bytes: &Hex) -> anyhow::Result<MlsMessageBodyIn> {
    let message = MlsMessageIn::tls_deserialize_exact(&bytes.0);
    Ok(message.context("no MLSMessage")?.extract())
}

fn protocol_message(bytes: &Hex) -> anyhow::Result<ProtocolMessage> {
    let message = MlsMessageIn::tls_deserialize_exact(&bytes.0).context("no MLSMessage")?;
    let message = message.try_into_protocol_message();
    message.map_err(|error| anyhow::anyhow!("no message of a group: {error:?}"))
}

/// The KeyPackage with its private keys. openmls makes such a bundle only by itself; its storage form can be read.
fn bundle(package: &KeyPackage, case: &Passive) -> anyhow::Result<KeyPackageBundle> {
    Ok(serde_json::from_value(json!({
        "key_package": package,
        "private_init_key": {"vec": case.init_priv.0},
        "private_encryption_key": {"key": {"vec": case.encryption_priv.0}},
    }))?)
}

fn key_package(bytes: &Hex) -> anyhow::Result<KeyPackageIn> {
    match body(bytes)? {
        MlsMessageBodyIn::KeyPackage(package) => Ok(package),
        _ => bail!("no KeyPackage"),
    }
}

fn join(step: &Step<'_>, case: &Passive) -> anyhow::Result<MlsGroup> {
    let provider = step.provider();
    let package = key_package(&case.key_package)?;
    let package = match package.validate(provider.crypto(), ProtocolVersion::Mls10) {
        Ok(package) => package,
        Err(error) => return unusable(&format!("{error:?}"), "the KeyPackage"),
    };
    let reference = package.hash_ref(provider.crypto())?;
    let stored = provider
        .storage()
        .write_key_package(&reference, &bundle(&package, case)?);
    stored.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    for secret in &case.external_psks {
        let psk = Psk::External(ExternalPsk::new(secret.psk_id.0.clone()));
        let suite = Ciphersuite::try_from(case.cipher_suite);
        let suite = suite.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let id = PreSharedKeyId::new(suite, provider.rand(), psk)?;
        id.store(provider, &secret.psk.0)?;
    }
    let tree = case.ratchet_tree.as_ref();
    let tree = tree
        .map(|tree| RatchetTreeIn::tls_deserialize_exact(&tree.0))
        .transpose()?;
    let MlsMessageBodyIn::Welcome(welcome) = body(&case.welcome)? else {
        bail!("no Welcome");
    };
    let config = MlsGroupJoinConfig::builder()
        .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .max_past_epochs(PAST_EPOCHS)
        .number_of_resumption_psks(PAST_EPOCHS)
        .build();
    let group = StagedWelcome::new_from_welcome(provider, &config, welcome, tree)
        .and_then(|staged| staged.into_group(provider));
    let group = match group {
        Ok(group) => group,
        Err(error) => return unusable(&format!("{error:?}"), "the Welcome"),
    };
    ensure!(
        group.epoch_authenticator().as_slice() == case.initial_epoch_authenticator.0,
        "initial_epoch_authenticator"
    );
    Ok(group)
}

/// What openmls refuses by a rule of its own, or of the calendar, is told apart from what it gets wrong.
fn unusable<T>(text: &str, what: &str) -> anyhow::Result<T> {
    for (sign, why) in [
        (
            "Lifetime",
            "a lifetime that is over: play it with the clock of its day",
        ),
        (
            "UnsupportedExtension",
            "openmls 0.9.2 wants a KeyPackage's extensions in its leaf's capabilities",
        ),
        ("Psk", "openmls 0.9.2 joins with no PSK of another group"),
    ] {
        if text.contains(sign) {
            return unsupported(why);
        }
    }
    bail!("{what}: {text}")
}

fn follow(step: &Step<'_>, group: &mut MlsGroup, epoch: &Epoch) -> anyhow::Result<()> {
    let provider = step.provider();
    for bytes in &epoch.proposals {
        let processed = group.process_message(provider, protocol_message(bytes)?);
        match processed.map_err(refused)?.into_content() {
            ProcessedMessageContent::ProposalMessage(proposal) => {
                let stored = group.store_pending_proposal(provider.storage(), *proposal);
                stored.map_err(|error| anyhow::anyhow!("{error:?}"))?;
            }
            _ => bail!("no proposal"),
        }
    }
    let processed = group.process_message(provider, protocol_message(&epoch.commit)?);
    let ProcessedMessageContent::StagedCommitMessage(staged) =
        processed.map_err(refused)?.into_content()
    else {
        bail!("no Commit");
    };
    group.merge_staged_commit(provider, *staged)?;
    ensure!(
        group.epoch_authenticator().as_slice() == epoch.epoch_authenticator.0,
        "epoch_authenticator"
    );
    Ok(())
}

/// What openmls does not have is told apart from what it gets wrong.
fn refused(error: impl std::fmt::Debug) -> anyhow::Error {
    let text = format!("{error:?}");
    for (sign, why) in [
        (
            "UnsupportedProposalType",
            "openmls 0.9.2 takes no such proposal from an external sender",
        ),
        ("ReInit", "openmls 0.9.2 has no ReInit"),
    ] {
        if text.contains(sign) {
            return super::Unsupported(why.to_owned()).into();
        }
    }
    anyhow::anyhow!(text)
}
