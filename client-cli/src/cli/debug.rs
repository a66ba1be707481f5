//! Single raw calls with a valid token. A refusal is an answer here: `{"ok":false,…}`, exit code 0.

use chancery_proto::{
    common::v1::{DeviceRef, GroupRef},
    delivery::v1::{
        ClaimKeyPackagesRequest, Cursor, FetchTreeRequest, GetGroupInfoRequest, ReadLogRequest,
        SubscribeRequest, Welcome, frame,
    },
};
use clap::Subcommand;
use prost::Message as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    core::{
        CoreError, group, guarded, join,
        records::{self, GroupName},
    },
    failure::{Failure, code_name, reason_name},
    member::{Audience, Member, directory},
};

/// `debug`
#[derive(Debug, Subcommand)]
pub enum Debug {
    /// `ReadLog`: which seqs the server gives.
    ReadLog {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
        /// After this seq.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
    /// `Subscribe` until everything that existed has come: which seqs the server gives.
    Subscribe {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
        /// After this seq.
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
    /// `FetchPayload` of one entry: how many bytes come.
    FetchPayload {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
        /// The entry.
        #[arg(long)]
        seq: u64,
    },
    /// `FetchTree` of an epoch: how many nodes come.
    FetchTree {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
        /// Name of the epoch; the current one when absent.
        #[arg(long)]
        epoch_seq: Option<u64>,
    },
    /// `GetGroupInfo`: its epoch.
    GroupInfo {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
    /// `ClaimKeyPackages` of one device: which KeyPackage comes. It is used up.
    Claim {
        /// `mimi://<domain>/d/<uuid>`.
        device: String,
        /// The claim's id; the same id is the same claim.
        #[arg(long)]
        claim_id: Uuid,
    },
    /// `ListWelcomes`: for which groups and seqs one waits.
    Welcomes,
    /// Tries the group's last Welcome once more, without keeping what comes of it: whether it still opens.
    OldWelcome {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
    /// An access token, for raw calls with another gRPC tool. Who has it acts as this device until it ends.
    Token {
        /// For which service.
        #[arg(long, value_enum, default_value = "delivery")]
        audience: Audience,
    },
    /// Loses this device's state of a group, as a damaged disk would; the key stays.
    Forget {
        /// `<domain>/<hex>`.
        #[arg(long)]
        group: GroupName,
    },
}

fn reference(group: &GroupName) -> Option<GroupRef> {
    Some(group.to_ref())
}

/// Runs one call.
///
/// # Errors
/// No answer, or the store; a refusal is an answer.
pub async fn run(member: &Member, command: Debug) -> Result<Value, Failure> {
    match call(member, command).await {
        Ok(mut value) => {
            value["ok"] = json!(true);
            Ok(value)
        }
        Err(Failure::Refused(refusal)) => Ok(json!({
            "ok": false,
            "code": code_name(refusal.code),
            "reason": refusal.reason.map(reason_name),
            "metadata": refusal.metadata,
        })),
        Err(failure) => Err(failure),
    }
}

async fn call(member: &Member, command: Debug) -> Result<Value, Failure> {
    match command {
        Debug::ReadLog { group, after } => read_log(member, &group, after).await,
        Debug::Subscribe { group, after } => subscribe(member, &group, after).await,
        Debug::FetchPayload { group, seq } => {
            let bytes = member.payload(&group, seq).await?.len();
            Ok(json!({ "bytes": bytes }))
        }
        Debug::FetchTree { group, epoch_seq } => {
            let request = FetchTreeRequest {
                group: reference(&group),
                epoch_seq: epoch_seq.unwrap_or_default(),
                current: epoch_seq.is_none(),
            };
            let nodes = member
                .delivery(request, async |mut client, request| {
                    let mut parts = client.fetch_tree(request).await?.into_inner();
                    let mut nodes = 0;
                    while let Some(part) = parts.message().await? {
                        nodes += part.nodes.len();
                    }
                    Ok(nodes)
                })
                .await?
                .value;
            Ok(json!({ "nodes": nodes }))
        }
        Debug::GroupInfo { group } => {
            let request = GetGroupInfoRequest {
                group: reference(&group),
            };
            let info = member
                .delivery(request, async |mut client, request| {
                    Ok(client.get_group_info(request).await?.into_inner())
                })
                .await?
                .value;
            Ok(
                json!({ "epoch": info.epoch, "epoch_seq": info.epoch_seq, "bytes": info.group_info.len() }),
            )
        }
        Debug::Claim { device, claim_id } => claim(member, &device, claim_id).await,
        Debug::Token { audience } => Ok(json!({ "token": member.token(audience).await? })),
        Debug::Welcomes => welcomes(member).await,
        Debug::OldWelcome { group } => old_welcome(member, &group).await,
        Debug::Forget { group } => {
            member.step(|step, _| {
                group::forget(step, &group)?;
                Ok(records::delete_group(step, &group)?)
            })?;
            Ok(json!({ "forgotten": group.to_string() }))
        }
    }
}

async fn read_log(member: &Member, group: &GroupName, after: u64) -> Result<Value, Failure> {
    let request = ReadLogRequest {
        group: reference(group),
        after_seq: after,
        ..ReadLogRequest::default()
    };
    let seqs = member
        .delivery(request, async |mut client, request| {
            let mut parts = client.read_log(request).await?.into_inner();
            let mut seqs = Vec::new();
            while let Some(part) = parts.message().await? {
                let entries = part.entries.unwrap_or_default().entries;
                seqs.extend(entries.iter().map(|entry| entry.seq));
            }
            Ok(seqs)
        })
        .await?
        .value;
    Ok(json!({ "seqs": seqs }))
}

async fn subscribe(member: &Member, group: &GroupName, after: u64) -> Result<Value, Failure> {
    let request = SubscribeRequest {
        cursors: vec![Cursor {
            group: reference(group),
            seq: after,
            ..Cursor::default()
        }],
        ..SubscribeRequest::default()
    };
    let (seqs, ended) = member
        .delivery(request, async |mut client, request| {
            let mut frames = client.subscribe(request).await?.into_inner();
            let (mut seqs, mut ended) = (Vec::new(), false);
            while let Some(frame) = frames.message().await? {
                match frame.frame {
                    Some(frame::Frame::Entries(entries)) => {
                        seqs.extend(entries.entries.iter().map(|entry| entry.seq));
                    }
                    Some(frame::Frame::Ended(_)) => ended = true,
                    Some(frame::Frame::CaughtUp(_)) => break,
                    _ => {}
                }
            }
            Ok((seqs, ended))
        })
        .await?
        .value;
    Ok(json!({ "seqs": seqs, "ended": ended }))
}

async fn claim(member: &Member, device: &str, claim_id: Uuid) -> Result<Value, Failure> {
    let (domain, id) = directory::device(device)?;
    let request = ClaimKeyPackagesRequest {
        claim_id: claim_id.as_bytes().to_vec().into(),
        devices: vec![DeviceRef {
            domain,
            id: id.to_vec().into(),
        }],
        suites: vec![u16::from(group::SUITES[0]).into()],
        ..ClaimKeyPackagesRequest::default()
    };
    let claims = member.ask_for_key_packages(request).await?;
    let claim = claims.first().ok_or(Failure::Core(CoreError::Unknown))?;
    let outcome = claim.outcome().as_str_name();
    Ok(json!({
        "outcome": outcome.trim_start_matches("CLAIM_OUTCOME_").to_lowercase(),
        "last_resort": claim.last_resort,
        "key_package_sha256": hex::encode(Sha256::digest(&claim.key_package)),
    }))
}

async fn welcomes(member: &Member) -> Result<Value, Failure> {
    let welcomes = member.welcomes().await?;
    let lines: Vec<_> = welcomes
        .iter()
        .map(|welcome| {
            let group = welcome.group.as_ref().map(GroupName::from_ref);
            json!({ "group": group.map(|g| g.to_string()), "seq": welcome.seq })
        })
        .collect();
    Ok(json!({ "welcomes": lines }))
}

async fn old_welcome(member: &Member, group: &GroupName) -> Result<Value, Failure> {
    let frame = member.step(|step, _| Ok(records::welcome(step, group)?))?;
    let frame = frame.ok_or(Failure::Core(CoreError::Unknown))?;
    let frame =
        Welcome::decode(frame.as_slice()).map_err(|error| Failure::Profile(error.to_string()))?;
    let tree = member.tree(group, frame.epoch_seq).await?;
    let opened = member.step(|step, context| {
        let tried = step.attempt(|| {
            let joined = guarded(|| join::welcome(step, context, &frame, tree));
            // Either way nothing of it stays.
            Err::<(), _>(joined.err().unwrap_or(CoreError::Nothing))
        });
        match tried {
            Err(CoreError::Nothing) => Ok(None),
            Err(CoreError::Store(error)) => Err(error.into()),
            Err(error) => Ok(Some(error.to_string())),
            Ok(()) => Ok(None),
        }
    })?;
    Ok(json!({ "opened": opened.is_none(), "why": opened }))
}
