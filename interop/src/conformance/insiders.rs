//! Rules 4 to 6 against somebody with a member's keys: what is well signed and not true is refused before it costs an
//! epoch, or takes the place of what is true.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{PutGroupInfoRequest, SubmitCommitRequest},
    group_info::GroupInfo,
    key_package::KeyPackage,
    policy::{ExternalJoin, POLICY_EXTENSION, Policy},
    wire::{Read, Reader, Write as _},
};
use ring::signature::Ed25519KeyPair;

use super::{
    Check,
    expect::refused,
    party::{Parties, Party, Plan, SUITE, fresh_id},
};
use crate::{
    contract::{aad, bundle},
    wire::full_tree,
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        rule: "6",
        name: "a Commit with a GroupInfo that is signed and not true is refused",
        run: |p| Box::pin(committed_info(p)),
    },
    Check {
        rule: "6",
        name: "a GroupInfo that is put changes nothing that the Commit fixed",
        run: |p| Box::pin(put_info(p)),
    },
    Check {
        rule: "5",
        name: "a leaf that is not the claimed KeyPackage's is refused",
        run: |p| Box::pin(another_leaf(p)),
    },
    Check {
        rule: "4",
        name: "an external Commit of a device that was never a member is refused",
        run: |p| Box::pin(stranger(p)),
    },
    Check {
        rule: "Removal",
        name: "a Commit takes out who asked to leave",
        run: |p| Box::pin(leaving(p)),
    },
];

const EXTERNAL_PUB: u16 = 4;

/// A GroupInfo taken apart.
struct Info {
    suite: u16,
    group: Vec<u8>,
    epoch: u64,
    tree_hash: Vec<u8>,
    transcript: Vec<u8>,
    context: Vec<(u16, Vec<u8>)>,
    extensions: Vec<(u16, Vec<u8>)>,
    tag: Vec<u8>,
    signer: u32,
}

fn read_extensions(reader: &mut Reader<'_>) -> Read<Vec<(u16, Vec<u8>)>> {
    reader.list(|r| Ok((r.u16()?, r.vector()?.to_vec())))
}

fn put_extensions(bytes: &mut Vec<u8>, extensions: &[(u16, Vec<u8>)]) {
    let mut all = Vec::new();
    for (kind, data) in extensions {
        all.put(&kind.to_be_bytes());
        all.put_vector(data);
    }
    bytes.put_vector(&all);
}

impl Info {
    fn read(message: &[u8]) -> anyhow::Result<Self> {
        let mut reader = Reader::new(message);
        // Version and wire format of the message, version of the context.
        reader.take(6)?;
        Ok(Self {
            suite: reader.u16()?,
            group: reader.vector()?.to_vec(),
            epoch: reader.u64()?,
            tree_hash: reader.vector()?.to_vec(),
            transcript: reader.vector()?.to_vec(),
            context: read_extensions(&mut reader)?,
            extensions: read_extensions(&mut reader)?,
            tag: reader.vector()?.to_vec(),
            signer: reader.u32()?,
        })
    }

    fn signed_by(&self, party: &Party) -> anyhow::Result<Vec<u8>> {
        let mut info = vec![0, 1];
        info.put(&self.suite.to_be_bytes());
        info.put_vector(&self.group);
        info.put(&self.epoch.to_be_bytes());
        info.put_vector(&self.tree_hash);
        info.put_vector(&self.transcript);
        put_extensions(&mut info, &self.context);
        put_extensions(&mut info, &self.extensions);
        info.put_vector(&self.tag);
        info.put(&self.signer.to_be_bytes());
        let key = party.device.leaf_key(SUITE)?;
        let pair = Ed25519KeyPair::from_seed_and_public_key(&key.secret, &key.public_key)
            .ok()
            .context("no Ed25519 key")?;
        let mut content = Vec::new();
        content.put_vector(b"MLS 1.0 GroupInfoTBS");
        content.put_vector(&info);
        let mut message = vec![0, 1, 0, 4];
        message.put(&info);
        message.put_vector(pair.sign(&content).as_ref());
        Ok(message)
    }

    fn change_policy(&mut self, change: impl Fn(&mut Policy)) {
        for (kind, data) in &mut self.context {
            if *kind == POLICY_EXTENSION
                && let Ok(mut policy) = Policy::decode(data)
            {
                change(&mut policy);
                *data = policy.encode();
            }
        }
    }
}

type Bend = fn(&mut Info);

/// What no GroupInfo of an epoch may say.
const UNTRUE: &[(&str, Bend)] = &[
    ("another suite", |i| i.suite = 3),
    ("a later epoch", |i| i.epoch += 1),
    ("another tree hash", |i| i.tree_hash[0] ^= 1),
    ("a larger window", |i| {
        i.change_policy(|p| p.past_epochs = 9)
    }),
    ("no external joins", |i| {
        i.change_policy(|p| p.external_join = ExternalJoin::None);
    }),
    ("another member's name", |i| i.signer ^= 1),
    ("no external_pub", |i| {
        i.extensions.retain(|(kind, _)| *kind != EXTERNAL_PUB);
    }),
    ("external_pub twice", |i| {
        let key = i.extensions.iter().find(|(kind, _)| *kind == EXTERNAL_PUB);
        i.extensions.extend(key.cloned());
    }),
];

const WRONG_INFO: &[Reason] = &[
    Reason::GroupInfoMismatch,
    Reason::TreeMismatch,
    Reason::Malformed,
];

/// What is put may be of an epoch that is not the current one, or in another's name.
const WRONG_PUT: &[Reason] = &[
    Reason::GroupInfoMismatch,
    Reason::TreeMismatch,
    Reason::Malformed,
    Reason::StaleEpoch,
    Reason::CredentialInvalid,
];

async fn committed_info(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let good = p.anna.stage(&group, &Plan::default()).await?;
    let true_info = &good.bundles[0].group_info;
    for (what, bend) in UNTRUE {
        let mut info = Info::read(true_info)?;
        bend(&mut info);
        let mut request = good.clone();
        request.bundles[0].group_info = info.signed_by(&p.anna)?.into();
        refused(p.anna.submit(request).await, WRONG_INFO).context(*what)?;
    }
    // The same hand without a bend.
    let mut request = good.clone();
    request.bundles[0].group_info = Info::read(true_info)?.signed_by(&p.anna)?.into();
    p.anna.submit(request).await.context("the true one")?;
    Ok(())
}

async fn put_info(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    p.anna
        .commit(&group, &Plan::default(), &mut [&mut p.ben])
        .await?;
    let stored = p.anna.device.group_info(&group).await?;
    let tree = full_tree(&p.anna.device.tree(&group, stored.epoch_seq).await?)?;
    for (what, bend) in UNTRUE {
        let mut info = Info::read(&stored.group_info)?;
        bend(&mut info);
        let request = PutGroupInfoRequest {
            group: p.anna.group(&group),
            epoch_seq: stored.epoch_seq,
            group_info: info.signed_by(&p.anna)?.into(),
            tree: Some(tree.clone()),
        };
        let mut delivery = p.anna.device.delivery();
        let answer = delivery.put_group_info(p.anna.device.by(request)?).await;
        refused(answer.map(drop), WRONG_PUT).context(*what)?;
    }
    let after = p.ben.device.group_info(&group).await?;
    ensure!(
        after.group_info == stored.group_info,
        "the stored GroupInfo is another one"
    );
    Ok(())
}

/// The Welcome names the KeyPackage that ben published; the leaf that enters the tree is of one that nobody has seen.
async fn another_leaf(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.anna.create().await?;
    let (ben, published) = p.ben.offer().await?;
    let other = p.ben.engine.key_package(false)?;
    let plan = Plan {
        add: vec![(ben, other.clone())],
        ..Plan::default()
    };
    let mut request = p.anna.stage(&group, &plan).await?;
    let reference = |package: &[u8]| -> anyhow::Result<Vec<u8>> {
        let package = KeyPackage::parse(package, package.len())?;
        package.reference().context("no reference")
    };
    let (from, to) = (reference(&other)?, reference(&published)?);
    let mut welcome = request.bundles[0].welcomes[0].to_vec();
    let place = welcome.windows(from.len()).position(|part| part == from);
    let place = place.context("the Welcome does not name its KeyPackage")?;
    welcome[place..place + to.len()].copy_from_slice(&to);
    request.bundles[0].welcomes[0] = welcome.into();
    refused(
        p.anna.submit(request).await,
        &[Reason::TreeMismatch, Reason::WelcomeMismatch],
    )?;
    Ok(())
}

async fn stranger(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let info = p.anna.device.group_info(&group).await?;
    let tree = p.anna.device.tree(&group, info.epoch_seq).await?;
    let joins = Plan {
        add: vec![(p.dora.person(), Vec::new())],
        ..Plan::default()
    };
    let id = fresh_id();
    let commit_info = p.anna.commit_info(&group, &joins).await?;
    let data = aad(id, Some(commit_info));
    let made = p
        .dora
        .engine
        .external(&group, &info.group_info, &tree, &data)?;
    let request = SubmitCommitRequest {
        group: p.dora.group(&group),
        epoch_seq: info.epoch_seq,
        bundles: vec![bundle(id, made)?],
    };
    refused(
        p.dora.submit(request).await,
        &[Reason::Group, Reason::Policy],
    )?;
    let after = p.anna.device.group_info(&group).await?;
    let parsed = |bytes: &[u8]| GroupInfo::parse(bytes, bytes.len());
    ensure!(
        parsed(&after.group_info)?.epoch == parsed(&info.group_info)?.epoch,
        "it cost an epoch"
    );
    Ok(())
}

async fn leaving(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let plan = Plan {
        add: vec![p.cleo.offer().await?],
        ..Plan::default()
    };
    p.anna.commit(&group, &plan, &mut [&mut p.ben]).await?;
    let joined = p.cleo.join(&group).await?.seq;
    p.cleo.device.leave(&group, SUITE, joined).await?;
    let stays = p.ben.stage(&group, &Plan::default()).await?;
    refused(p.ben.submit(stays).await, &[Reason::PendingRemoval])?;
    // Messages do not wait for it.
    let text = p.anna.frame(&group, "go well").await?;
    p.anna.device.send(text).await?;
    let goes = Plan {
        remove: vec![p.cleo.person()],
        ..Plan::default()
    };
    p.anna.commit(&group, &goes, &mut [&mut p.ben]).await?;
    Ok(())
}
