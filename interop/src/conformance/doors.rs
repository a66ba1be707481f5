//! KeyPackages, Welcomes, tokens and limits: what stands around the log.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{GetKeyPackageStockRequest, GetServiceInfoRequest, SuiteStatus},
};
use tonic::Request;

use super::{
    Check,
    expect::refused,
    party::{Parties, Plan, SUITE, fresh_id},
};

pub(super) const CHECKS: &[Check] = &[
    Check {
        rule: "KeyPackages",
        name: "a one-time KeyPackage is given out once and the last resort again and again",
        run: |p| Box::pin(claims(p)),
    },
    Check {
        rule: "KeyPackages",
        name: "a spoiled or foreign KeyPackage is not taken",
        run: |p| Box::pin(spoiled_key_package(p)),
    },
    Check {
        rule: "Welcomes",
        name: "a Welcome stays until it is acknowledged and acknowledging twice is harmless",
        run: |p| Box::pin(acknowledging(p)),
    },
    Check {
        rule: "Tokens",
        name: "no token and a spoiled one are refused",
        run: |p| Box::pin(tokens(p)),
    },
    Check {
        rule: "Errors",
        name: "a request that lacks what it needs is malformed",
        run: |p| Box::pin(malformed(p)),
    },
    Check {
        rule: "Limits",
        name: "the service says who it is and what its limits are",
        run: |p| Box::pin(service_info(p)),
    },
    Check {
        rule: "Limits",
        name: "a message over the published limit is refused as such",
        run: |p| Box::pin(too_large(p)),
    },
];

async fn claims(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.anna.create().await?;
    let (_, one_time) = p.dora.offer().await?;
    let last_resort = p.dora.engine.key_package(true)?;
    p.dora.device.publish(vec![last_resort.clone()]).await?;
    let dora = [p.dora.person()];
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.extend(p.anna.device.claim(&group, SUITE, &dora).await?);
    }
    ensure!(
        claimed == [one_time, last_resort.clone(), last_resort],
        "other KeyPackages than one-time, last resort, last resort"
    );
    Ok(())
}

async fn spoiled_key_package(p: &mut Parties) -> anyhow::Result<()> {
    let reasons = [Reason::Malformed, Reason::CredentialInvalid];
    let mut spoiled = p.dora.engine.key_package(false)?;
    let last = spoiled.len() - 1;
    spoiled[last] ^= 1;
    refused(p.dora.device.publish(vec![spoiled]).await, &reasons)?;
    refused(p.dora.device.publish(vec![vec![0xFF; 100]]).await, &reasons)?;
    let foreign = p.ben.engine.key_package(false)?;
    refused(p.dora.device.publish(vec![foreign]).await, &reasons)?;
    Ok(())
}

async fn acknowledging(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.anna.create().await?;
    let plan = Plan {
        add: vec![p.ben.offer().await?],
        ..Plan::default()
    };
    p.anna.commit(&group, &plan, &mut []).await?;
    let first = p.ben.welcome(&group).await?;
    ensure!(
        p.ben.welcome(&group).await? == first,
        "another Welcome at the second look"
    );
    p.ben.join(&group).await?;
    ensure!(p.ben.welcome(&group).await.is_err(), "it is still there");
    p.ben
        .device
        .acknowledge(&first)
        .await
        .context("the second acknowledgement")?;
    Ok(())
}

async fn tokens(p: &mut Parties) -> anyhow::Result<()> {
    let mut delivery = p.anna.device.delivery();
    let without = delivery
        .get_key_package_stock(GetKeyPackageStockRequest {})
        .await;
    refused(without, &[Reason::TokenMissing])?;
    let own = p.anna.device.by(GetKeyPackageStockRequest {})?;
    let token = own
        .metadata()
        .get("authorization")
        .context("no token")?
        .to_str()?
        .to_owned();
    let (signed, signature) = token.rsplit_once('.').context("no JWT")?;
    let flipped: String = signature.chars().rev().collect();
    for token in [
        format!("{signed}.{flipped}"),
        format!("{signed}."),
        "Bearer nonsense".to_owned(),
    ] {
        let mut request = Request::new(GetKeyPackageStockRequest {});
        request
            .metadata_mut()
            .insert("authorization", token.parse()?);
        refused(
            delivery.get_key_package_stock(request).await,
            &[Reason::TokenInvalid],
        )?;
    }
    Ok(())
}

async fn malformed(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let whole = p.anna.frame(&group, "whole").await?;
    let mut without_group = whole.clone();
    without_group.group = None;
    let mut short_id = whole.clone();
    short_id.message_id = vec![1, 2, 3].into();
    let mut other_id = whole.clone();
    other_id.message_id = fresh_id().to_vec().into();
    for request in [without_group, short_id] {
        refused(p.anna.device.send(request).await, &[Reason::Malformed])?;
    }
    // The message says another id of itself.
    let reasons = [Reason::CommitInfoInvalid, Reason::Malformed];
    refused(p.anna.device.send(other_id).await, &reasons)?;
    p.anna
        .device
        .send(whole)
        .await
        .context("the whole request")?;
    Ok(())
}

async fn limit(p: &Parties, name: &str) -> anyhow::Result<usize> {
    let info = p
        .anna
        .device
        .delivery()
        .get_service_info(GetServiceInfoRequest {})
        .await?;
    let limits = info.into_inner().limits;
    let found = limits.into_iter().find(|limit| limit.name == name);
    Ok(found
        .with_context(|| format!("no limit {name}"))?
        .value
        .try_into()?)
}

async fn service_info(p: &mut Parties) -> anyhow::Result<()> {
    let info = p
        .anna
        .device
        .delivery()
        .get_service_info(GetServiceInfoRequest {})
        .await?
        .into_inner();
    ensure!(!info.domain.is_empty(), "no domain");
    ensure!(!info.incarnation.is_empty(), "no incarnation");
    ensure!(
        info.auth_domains.contains(&p.anna.device.domain),
        "it does not trust the domain that it takes tokens of"
    );
    let usable = [SuiteStatus::Preferred, SuiteStatus::Allowed];
    ensure!(
        info.suites
            .iter()
            .any(|s| s.code == u32::from(SUITE) && usable.contains(&s.status())),
        "suite {SUITE} is not there"
    );
    for name in [
        "message_bytes",
        "group_info_bytes",
        "key_package_bytes",
        "request_bytes",
        "group_members_items",
    ] {
        limit(p, name).await?;
    }
    Ok(())
}

async fn too_large(p: &mut Parties) -> anyhow::Result<()> {
    let group = p.two().await?;
    let head = p.anna.head(&group).await?;
    let text = "x".repeat(limit(p, "message_bytes").await? + 1);
    let request = p.anna.frame(&group, &text).await?;
    refused(
        p.anna.device.send(request).await,
        &[Reason::LimitExceeded, Reason::Malformed],
    )?;
    ensure!(p.anna.head(&group).await? == head, "the log grew");
    Ok(())
}
