//! One round: services of their own, a caller with every right of a member, and others who must not notice.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use chancery_proto::delivery::v1::GetGroupInfoRequest;
use client_cli::{
    core::records::GroupName,
    member::{Audience, Member},
};

use super::{Aim, Known, Summary, storm};
use crate::{device::Device, programs::Programs, server::Server};

const DOMAIN: &str = "interior.example";
/// How much a service may have grown, octets: caches fill, nothing else does.
const GROWTH: u64 = 256 << 20;

/// Starts services in `folder`, sends the requests, and looks at what is left.
///
/// # Errors
/// Services do not start; afterwards honest devices cannot talk; memory grew beyond any cache.
pub async fn round(
    programs: &Programs,
    folder: &Path,
    calls: usize,
    seed: u64,
) -> anyhow::Result<Summary> {
    let server = Server::start(programs, &folder.join("server"), &[DOMAIN])?;
    let enroll = |name: &str| Device::enroll(programs, &server.node, folder, 0, name, name);
    let (caller, one, two) = (enroll("caller")?, enroll("one")?, enroll("two")?);
    let (_, shared) = caller.create_group([&one, &two])?;
    let (_, apart) = one.create_group([&two])?;
    two.run(&["sync"])?;

    let member = caller.member().await?;
    let known = known(&member, &shared, &[&one, &two]).await?;
    let aims = [
        Aim {
            service: "chancery.delivery.v1.DeliveryService",
            url: server.node.delivery_url.clone(),
            token: member.token(Audience::Delivery).await?,
        },
        Aim {
            service: "chancery.auth.v1.AuthService",
            url: server.node.auth.first().context("no domain")?.url.clone(),
            token: member.token(Audience::Auth).await?,
        },
    ];
    let before = memory(server.node.pid)?;
    let summary = storm(&aims, known, calls, seed).await?;
    let after = memory(server.node.pid)?;
    ensure!(
        after < before + GROWTH,
        "{before} octets before, {after} after"
    );

    one.run(&["send", "--group", &apart, "still here"])?;
    let read = two.run(&["read", "--group", &apart])?;
    ensure!(
        read.to_string().contains("still here"),
        "nothing came: {read}"
    );
    Ok(summary)
}

async fn known(member: &Member, group: &str, others: &[&Device]) -> anyhow::Result<Known> {
    let name: GroupName = group.parse().map_err(anyhow::Error::msg)?;
    let mut people = Vec::new();
    for other in others {
        let (_, id) = other.uri.rsplit_once('/').context("no device's URI")?;
        people.push(id.parse::<uuid::Uuid>()?.as_bytes().to_vec());
    }
    let request = GetGroupInfoRequest {
        group: Some(name.to_ref()),
    };
    let answer = member.delivery(request, async |mut client, request| {
        Ok(client.get_group_info(request).await?.into_inner())
    });
    let info = answer.await?.value.group_info.to_vec();
    let mut objects = vec![info, vec![7; 16], vec![7; 32]];
    // The fuzzer's seeds: what readers accept.
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for target in fs::read_dir(corpus)? {
        for file in fs::read_dir(target?.path())? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("seed-") {
                objects.push(fs::read(file.path())?);
            }
        }
    }
    // The order of a folder is not the seed's.
    objects.sort();
    Ok(Known {
        domains: vec![DOMAIN.into()],
        groups: vec![name.id],
        people,
        objects,
    })
}

/// Resident memory of a process, octets.
fn memory(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("no VmRSS")?.parse::<u64>()? << 10)
}
