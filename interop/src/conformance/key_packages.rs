//! KeyPackages: each rule refuses what breaks it, and a claim keeps its answer.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    common::v1::Reason,
    forge,
    key_package::{KeyPackage, LAST_RESORT},
    policy::POLICY_EXTENSION,
};
use ring::signature::Ed25519KeyPair;
use uuid::Uuid;

use super::{
    Check,
    expect::refused,
    party::{Parties, Party, SUITE},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        rule: "KeyPackages",
        name: "a KeyPackage that breaks a rule is refused and the rule is named",
        run: |p| Box::pin(each_rule(p)),
    },
    Check {
        rule: "KeyPackages",
        name: "GREASE in capabilities is taken",
        run: |p| Box::pin(listed_grease(p)),
    },
    Check {
        rule: "KeyPackages",
        name: "a repeated claim gets the last resort that was replaced meanwhile",
        run: |p| Box::pin(repeated_claim(p)),
    },
];

/// A type for private use (RFC 9420 section 17.3).
const PRIVATE_USE: u16 = 0xf0f0;

type Spoil = fn(&mut KeyPackage);

/// One way to break each rule of `docs/protocol.md`.
const SPOILT: &[(&str, Spoil)] = &[
    ("encryption_key_form", |p| {
        p.leaf.encryption_key.truncate(5);
    }),
    ("encryption_key_form", |p| p.leaf.encryption_key.fill(0)),
    ("init_key_form", |p| p.init_key.clear()),
    ("init_key_form", |p| p.init_key.fill(0)),
    ("init_key_differs", |p| {
        p.init_key = p.leaf.encryption_key.clone();
    }),
    ("version_in_capabilities", |p| {
        p.leaf.capabilities.versions = vec![2];
    }),
    ("suite_in_capabilities", |p| {
        p.leaf.capabilities.suites = vec![0xf0f0];
    }),
    ("credential_in_capabilities", |p| {
        p.leaf.capabilities.credentials = vec![1];
    }),
    ("default_extension_in_capabilities", |p| {
        p.leaf.capabilities.extensions.push(1);
    }),
    ("default_proposal_in_capabilities", |p| {
        p.leaf.capabilities.proposals.push(1);
    }),
    ("policy_in_capabilities", |p| {
        p.leaf
            .capabilities
            .extensions
            .retain(|e| *e != POLICY_EXTENSION);
    }),
    ("leaf_extension_in_capabilities", |p| {
        p.leaf.extensions.push((PRIVATE_USE, vec![]));
    }),
    ("leaf_extension_misplaced", |p| {
        p.leaf.extensions.push((2, vec![]));
    }),
    ("leaf_extension_twice", |p| {
        p.leaf.extensions = vec![(1, vec![]), (1, vec![])];
    }),
    ("extension_in_capabilities", |p| {
        p.extensions.push((PRIVATE_USE, vec![]));
    }),
    ("extension_misplaced", |p| p.extensions.push((4, vec![]))),
    ("extension_twice", |p| {
        p.extensions = vec![(LAST_RESORT, vec![]), (LAST_RESORT, vec![])];
    }),
    ("last_resort_empty", |p| {
        p.extensions = vec![(LAST_RESORT, vec![1])];
    }),
];

/// A KeyPackage of this party with one part changed, signed again.
fn changed(party: &mut Party, change: Spoil) -> anyhow::Result<Vec<u8>> {
    let good = party.engine.key_package(false)?;
    let mut package = KeyPackage::parse(&good, good.len())?;
    change(&mut package);
    let key = party.device.leaf_key(SUITE)?;
    let pair = Ed25519KeyPair::from_seed_and_public_key(&key.secret, &key.public_key)
        .ok()
        .context("no Ed25519 key")?;
    let sign = |content: &[u8]| pair.sign(content).as_ref().to_vec();
    Ok(forge::key_package(&package, &sign))
}

async fn each_rule(p: &mut Parties) -> anyhow::Result<()> {
    for (rule, spoil) in SPOILT {
        let spoilt = changed(&mut p.dora, *spoil)?;
        let answer = p.dora.device.publish(vec![spoilt]).await;
        let refusal = refused(answer, &[Reason::CredentialInvalid]).context(*rule)?;
        let named = refusal.metadata.get("rule");
        ensure!(
            named.is_some_and(|named| named == rule),
            "{rule} is broken, and {named:?} was named"
        );
    }
    Ok(())
}

async fn listed_grease(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.anna.create().await?;
    let greased = changed(&mut p.dora, |package| {
        let can = &mut package.leaf.capabilities;
        can.extensions.push(0x2a2a);
        can.proposals.push(0x2a2a);
        can.credentials.push(0x2a2a);
        can.suites.push(0x2a2a);
    })?;
    p.dora.device.publish(vec![greased.clone()]).await?;
    let of = [p.dora.person()];
    let claimed = p.anna.device.claim(&group, SUITE, &of).await?;
    ensure!(claimed == [greased], "another KeyPackage was given");
    Ok(())
}

async fn repeated_claim(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.anna.create().await?;
    let (old, other) = (
        p.dora.engine.key_package(true)?,
        p.dora.engine.key_package(true)?,
    );
    let (of, id) = ([p.dora.person()], Uuid::new_v4());
    p.dora.device.publish(vec![old.clone()]).await?;
    let first = p.anna.device.claim_as(id, &group, SUITE, &of).await?;
    ensure!(first == [old], "another KeyPackage than the last resort");
    p.dora.device.publish(vec![other.clone()]).await?;
    let again = p.anna.device.claim_as(id, &group, SUITE, &of).await?;
    ensure!(again == first, "the repeat got another answer");
    let next = p.anna.device.claim(&group, SUITE, &of).await?;
    ensure!(next == [other], "the replaced last resort is given still");
    Ok(())
}
