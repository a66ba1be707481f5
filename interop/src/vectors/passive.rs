//! A group that is joined by a Welcome and followed, Commit by Commit, on our client's store.

use anyhow::{Context as _, bail, ensure};
use chancery_proto::key_package::KeyPackage;
use client_cli::store::{Step, Store, StoreError};
use openmls::{
    prelude::{
        Ciphersuite, KeyPackageBundle, MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY, MlsGroup,
        MlsGroupJoinConfig, MlsMessageBodyIn, MlsMessageIn, ProcessedMessageContent,
        ProtocolMessage, RatchetTreeIn, StagedWelcome, tls_codec::Deserialize as _,
    },
    schedule::{ExternalPsk, PreSharedKeyId, Psk},
};
use openmls_traits::{OpenMlsProvider, storage::StorageProvider as _};
use serde::Deserialize;
use serde_json::json;

use super::{Hex, trees::suite, unsupported};

const GREASE: &str =
    "openmls 0.9.2 reads no tree with a leaf that carries an extension of a GREASE type";
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

/// The recorded KeyPackage, with its signatures verified.
fn key_package(case: &Passive) -> anyhow::Result<KeyPackage> {
    let bytes = &case.key_package.0;
    let package = KeyPackage::parse(bytes, bytes.len()).context("the KeyPackage")?;
    ensure!(
        package.verify() == Some(true),
        "a signature of the KeyPackage is wrong"
    );
    Ok(package)
}

/// The KeyPackage with its private keys in openmls' storage form: openmls makes such a bundle only by itself. Whoever
/// joins takes its own KeyPackage without a look at the clock or at the rules of another stack.
fn bundle(case: &Passive) -> anyhow::Result<KeyPackageBundle> {
    let MlsMessageBodyIn::KeyPackage(package) = body(&case.key_package)? else {
        bail!("no KeyPackage");
    };
    Ok(serde_json::from_value(json!({
        "key_package": package,
        "private_init_key": {"vec": case.init_priv.0},
        "private_encryption_key": {"key": {"vec": case.encryption_priv.0}},
    }))?)
}

fn join(step: &Step<'_>, case: &Passive) -> anyhow::Result<MlsGroup> {
    let provider = step.provider();
    let read = key_package(case)?;
    let bundle = bundle(case)?;
    let reference = bundle.key_package().hash_ref(provider.crypto())?;
    let stored = provider.storage().write_key_package(&reference, &bundle);
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
    // What was recorded is judged by the rules and not by today's clock.
    let joined = StagedWelcome::build_from_welcome(provider, &config, welcome)
        .and_then(|builder| {
            let builder = builder.skip_lifetime_validation();
            match tree {
                Some(tree) => builder.with_ratchet_tree(tree).build(),
                None => builder.build(),
            }
        })
        .and_then(|staged| staged.into_group(provider));
    let group = match joined {
        Ok(group) => group,
        Err(_) if read.check_grease().is_err() => return unsupported(GREASE),
        Err(error) => return Err(refused(&error).context("the Welcome")),
    };
    ensure!(
        group.epoch_authenticator().as_slice() == case.initial_epoch_authenticator.0,
        "initial_epoch_authenticator"
    );
    Ok(group)
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

/// What openmls does not have, or refuses by a rule of its own or of the calendar, is told apart from what it gets wrong.
fn refused(error: impl std::fmt::Debug) -> anyhow::Error {
    let text = format!("{error:?}");
    for (sign, why) in [
        (
            "UnsupportedProposalType",
            "openmls 0.9.2 takes no such proposal from an external sender",
        ),
        ("ReInit", "openmls 0.9.2 has no ReInit"),
        ("Psk", "openmls 0.9.2 joins with no PSK of another group"),
    ] {
        if text.contains(sign) {
            return super::Unsupported(why.to_owned()).into();
        }
    }
    anyhow::anyhow!(text)
}
