//! Recovery from members that lie: epochs are confirmed or failed, a Commit that nobody can use is taken back, a false GroupInfo is repaired.

use std::{sync::Arc, time::Duration};

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        EntryKind, FailureReport, PutGroupInfoRequest, PutGroupInfoResponse, ReportEpochRequest,
        ReportEpochResponse, VoidPayload, report_epoch_request::Report,
    },
    group_info::GroupInfo,
    signed,
};
use prost::Message as _;
use service_kit::{
    db::{DbError, Transaction, TxError},
    items::Items,
    lifecycle::Shutdown,
};
use sha2::{Digest as _, Sha256};

use crate::{
    access::{caller::Caller, domains::Domains},
    commands::submit_commit::read_caller,
    error::Error,
    log::entry::{Body, append_entry},
    node::Node,
    ordering::{
        content::check_repair,
        group::{
            Group, Head, Rejection,
            settle::{Before, Failed, Reported},
        },
    },
    reading::log,
    request::{self, PreparedInfo},
    store::{
        self,
        recovery::{DUE_PAGE, Said},
    },
    wire,
};

/// How far ahead a report may end, seconds.
const LONGEST: i64 = 30 * 86_400;
/// How often due failures are looked for.
const LOOK: Duration = Duration::from_millis(500);

type TxResult<T> = Result<T, TxError<Error>>;

fn rejected(rejection: Rejection) -> TxError<Error> {
    TxError::Rejected(rejection.into())
}

/// Takes what a member says of an epoch.
///
/// # Errors
/// `GROUP`, `UNKNOWN_VALUE` (no such epoch), `EPOCH_VOIDED`, `PROOF_INVALID`, `MALFORMED`, `DEVICE_REVOKED`, or the database.
pub async fn report(
    node: &Node,
    caller: &Caller,
    request: &ReportEpochRequest,
) -> Result<ReportEpochResponse, Error> {
    let group = wire::group_id(node, request.group.as_ref())?;
    let said = match &request.report {
        Some(Report::StateHash(hash)) if hash.len() == 32 => Said::Hash(hash.to_vec()),
        Some(Report::StateHash(_)) => return Err(Error::malformed("state_hash", "32 bytes")),
        Some(Report::Failure(failure)) => {
            failure_said(node, caller, &group, request.epoch_seq, failure).await?
        }
        None => return Err(Error::malformed("report", "missing")),
    };
    let (who, epoch_seq) = (caller.clone(), request.epoch_seq);
    let wait = f64::from(node.config.void_after_seconds);
    let shared = Arc::new((group, said));
    let settled_seq = node
        .db
        .run_tx("report_epoch", move |tx| {
            let (shared, who) = (shared.clone(), who.clone());
            Box::pin(
                async move { report_in(tx, &who, &shared.0, epoch_seq, &shared.1, wait).await },
            )
        })
        .await?;
    Ok(ReportEpochResponse { settled_seq })
}

/// A failure names its Commit and is signed with the key of the reporter's leaf in the epoch before: the tree that came with the Commit proves nothing.
async fn failure_said(
    node: &Node,
    caller: &Caller,
    group: &[u8],
    epoch_seq: u64,
    failure: &FailureReport,
) -> Result<Said, Error> {
    let own = node.domains.device_ref(caller.key);
    if failure.reporter.as_ref().is_some_and(|r| *r != own) || failure.commit_seq != epoch_seq {
        return Err(Error::malformed(
            "failure",
            "not of the caller, or not of this epoch",
        ));
    }
    let sha256: [u8; 32] = failure
        .commit_sha256
        .as_ref()
        .try_into()
        .map_err(|_| Error::malformed("failure.commit_sha256", "32 bytes"))?;
    let reason = i16::try_from(failure.reason)
        .ok()
        .filter(|reason| *reason > 0)
        .ok_or_else(|| Error::refused(Reason::UnknownValue, "failure.reason"))?;
    // A group that the caller is not in gets no other answer than one that is not there.
    let view = log::view(node, caller, group.to_vec()).await?;
    if !view.holds(epoch_seq) {
        return Err(Error::no_group());
    }
    let client = node.db.client().await?;
    let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
    if !(now..=now + LONGEST).contains(&failure.expires_at) {
        return Err(Error::malformed(
            "failure.expires_at",
            "over, or more than 30 days ahead",
        ));
    }
    let payload = store::log::payload(&client, group, epoch_seq)
        .await
        .map_err(DbError::from)?;
    let key = match epoch_seq.checked_sub(1) {
        Some(before) => {
            request::leaf_key(&client, group, before, &caller.domain, caller.key).await?
        }
        None => None,
    };
    let content = signed::failure(
        (&node.config.domain, group),
        (&caller.domain, caller.key.device.as_bytes()),
        epoch_seq,
        &sha256,
        failure.reason,
        failure.expires_at,
    );
    let holds = payload.is_some_and(|payload| Sha256::digest(&payload)[..] == sha256)
        && key
            .is_some_and(|key| signed::verify(&key, signed::FAILURE, &content, &failure.signature));
    if !holds {
        return Err(Error::refused(
            Reason::ProofInvalid,
            "the report is not signed with the leaf's key, or is about another Commit",
        ));
    }
    let report = FailureReport {
        reporter: Some(own),
        ..failure.clone()
    };
    Ok(Said::Failure {
        reason,
        report: report.encode_to_vec(),
    })
}

async fn report_in(
    tx: &Transaction<'_>,
    caller: &Caller,
    group: &[u8],
    epoch_seq: u64,
    said: &Said,
    wait_seconds: f64,
) -> TxResult<u64> {
    let Some(head) = store::groups::lock(tx, group).await? else {
        return Err(TxError::Rejected(Error::no_group()));
    };
    let (_, caller_revoked) = read_caller(tx, group, caller.key).await?;
    let membership = store::roster::at(tx, group, caller.key, epoch_seq).await?;
    let state = Group {
        head,
        caller: membership,
        caller_revoked,
        prior: None,
    };
    let known = store::epochs::find(tx, group, epoch_seq).await?;
    let Some(epoch) = known else {
        return Err(no_epoch(tx, &state, group, epoch_seq).await?);
    };
    let reported = Reported {
        epoch_seq,
        committer: epoch.committer,
    };
    let user = membership.map_or(caller.user, |m| m.user);
    let reporter = (caller.key, user);
    match said {
        Said::Hash(_) => {
            let after = state.confirm(caller.key, reported).map_err(rejected)?;
            store::recovery::report(tx, group, epoch_seq, reporter, said).await?;
            if let Some(after) = after {
                write_head(tx, group, &state.head, &after).await?;
                return Ok(after.settled_seq);
            }
        }
        Said::Failure { .. } => {
            if state.failure_counts(reported).map_err(rejected)? {
                let noted = store::recovery::report(tx, group, epoch_seq, reporter, said).await?;
                if noted == 1 {
                    store::recovery::look_at(tx, group, epoch_seq, wait_seconds).await?;
                }
            }
        }
    }
    Ok(state.head.settled_seq)
}

/// Why there is no epoch of this name: it was taken back, or never was, and strangers do not learn which.
async fn no_epoch(
    tx: &Transaction<'_>,
    state: &Group,
    group: &[u8],
    epoch_seq: u64,
) -> TxResult<TxError<Error>> {
    if state.caller.is_none() {
        return Ok(TxError::Rejected(Error::no_group()));
    }
    Ok(
        match store::recovery::voided_by(tx, group, epoch_seq).await? {
            Some(by_seq) => rejected(Rejection::EpochVoided {
                current_epoch: state.head.epoch,
                epoch_seq: state.head.epoch_seq,
                by_seq,
            }),
            None => TxError::Rejected(Error::refused(
                Reason::UnknownValue,
                "epoch_seq names no epoch",
            )),
        },
    )
}

/// Writes a head that no entry moved.
async fn write_head(
    tx: &Transaction<'_>,
    group: &[u8],
    before: &Head,
    after: &Head,
) -> TxResult<()> {
    let rows = store::groups::advance(tx, group, before, after).await?;
    if rows != 1 {
        return Err(TxError::Rejected(Error::Corrupt(
            "the head moved under the lock",
        )));
    }
    store::epochs::forget_committers(tx, group, after.settled_seq).await?;
    Ok(())
}

/// Looks at reported failures when they are due, until shutdown. Any number of nodes may: the group's lock decides.
pub async fn run_voids(node: Node, shutdown: Shutdown) {
    let mut ticker = shutdown.ticker(LOOK);
    while ticker.next().await {
        if let Err(error) = void_due(&node).await {
            tracing::warn!(%error, "cannot look at reported failures");
        }
    }
}

/// Page by page, so that those that fail hold up nobody behind them.
async fn void_due(node: &Node) -> Result<(), Error> {
    let mut items = Items::of("voids");
    let mut last = None;
    loop {
        let client = node.db.client().await?;
        let page = store::recovery::due(&client, last.as_ref()).await;
        drop(client);
        let page = page.map_err(DbError::from)?;
        for due in &page {
            let name = hex::encode(&due.group);
            let voided = void_one(node, due.group.clone(), due.epoch_seq);
            items.one(name, voided).await?;
        }
        match page.into_iter().nth(DUE_PAGE - 1) {
            Some(due) => last = Some(due),
            None => return Ok(()),
        }
    }
}

async fn void_one(node: &Node, group: Vec<u8>, epoch_seq: u64) -> Result<(), Error> {
    let wait = i64::from(node.config.void_after_seconds) * 1_000_000;
    let shared = Arc::new(group);
    let (group, domains) = (shared.clone(), node.domains.clone());
    let done = node.db.run_tx("void", move |tx| {
        let group = group.clone();
        let domains = domains.clone();
        Box::pin(async move { void_in(tx, &domains, &group, epoch_seq, wait).await })
    });
    if let Some((void_seq, devices)) = done.await? {
        metrics::counter!("chancery_ds_commits_voided_total").increment(1);
        tracing::warn!(epoch_seq, void_seq, "a Commit was voided");
        node.hub.group_moved(&shared, void_seq);
        for device in devices {
            node.hub.device_changed(device);
        }
    }
    Ok(())
}

async fn void_in(
    tx: &Transaction<'_>,
    domains: &Domains,
    group: &[u8],
    epoch_seq: u64,
    wait_micros: i64,
) -> TxResult<Option<(u64, Vec<crate::ordering::group::DeviceKey>)>> {
    let Some(head) = store::groups::lock(tx, group).await? else {
        return Ok(None);
    };
    let now = store::groups::now(tx).await?;
    let Some(epoch) = store::epochs::find(tx, group, epoch_seq).await? else {
        return Ok(None);
    };
    let failures = store::recovery::failures(tx, group, epoch_seq).await?;
    let (Some(committer), Some(before)) = (
        epoch.committer,
        store::epochs::before(tx, group, epoch_seq).await?,
    ) else {
        store::recovery::looked_at(tx, group, epoch_seq).await?;
        return Ok(None);
    };
    let policy = GroupInfo::parse(&before.group_info, before.group_info.len())
        .and_then(|info| info.policy())
        .map_err(|_| TxError::Rejected(Error::Corrupt("a stored GroupInfo")))?;
    let failed = Failed {
        seq: epoch_seq,
        users: failures.users,
        other_users: store::recovery::other_users(tx, group, epoch_seq, committer.user).await?,
        first_at: failures.first_at,
        before: Before {
            epoch: before.epoch,
            epoch_seq: before.epoch_seq,
            floor_seq: before.floor_seq.unwrap_or(before.epoch_seq),
            committer: before.committer,
            past_epochs: policy.past_epochs.into(),
            external_join: request::join_of(policy.external_join),
        },
    };
    let Some(mut append) = head.void(&failed, wait_micros, now) else {
        store::recovery::looked_at(tx, group, epoch_seq).await?;
        return Ok(None);
    };
    let devices = store::recovery::restore(tx, group, epoch_seq, append.seq).await?;
    append.head.pending_removals = store::revocations::mark_again(tx, group).await?;
    let payload = VoidPayload {
        first_seq: epoch_seq,
        last_seq: head.seq,
        reports: failures
            .reports
            .iter()
            .filter_map(|report| FailureReport::decode(report.as_slice()).ok())
            .collect(),
        committer: Some(domains.device_ref(committer.key)),
    }
    .encode_to_vec();
    append_entry(
        tx,
        group,
        &head,
        &append,
        Body::by_service(EntryKind::Void, &payload),
    )
    .await?;
    store::recovery::insert_void(tx, group, append.seq, epoch_seq, head.seq).await?;
    store::recovery::bar(tx, group, committer.key, append.seq).await?;
    Ok(Some((append.seq, devices)))
}

/// Puts another GroupInfo and tree in the place of those of the current epoch. Whoever signs it is named by it.
///
/// # Errors
/// `GROUP`, `STALE_EPOCH`, `GROUP_INFO_MISMATCH`, `TREE_MISMATCH`, `CREDENTIAL_INVALID`, `GROUP_CLOSED`, or the database.
pub async fn put_group_info(
    node: &Node,
    caller: &Caller,
    request: &PutGroupInfoRequest,
) -> Result<PutGroupInfoResponse, Error> {
    let info = Arc::new(request::repair(node, caller, request).await?);
    let home_domain: Arc<str> = node.config.domain.as_str().into();
    let (shared, who) = (info.clone(), caller.clone());
    node.db
        .run_tx("put_group_info", move |tx| {
            let (info, who, home_domain) = (shared.clone(), who.clone(), home_domain.clone());
            Box::pin(async move { put_in(tx, &who, &home_domain, &info).await })
        })
        .await?;
    Ok(PutGroupInfoResponse {
        group_state_hash: info.group_state_hash.to_vec().into(),
    })
}

async fn put_in(
    tx: &Transaction<'_>,
    caller: &Caller,
    home_domain: &str,
    info: &PreparedInfo,
) -> TxResult<()> {
    let group = &info.group;
    let Some(head) = store::groups::lock(tx, group).await? else {
        return Err(TxError::Rejected(Error::no_group()));
    };
    let (membership, caller_revoked) = read_caller(tx, group, caller.key).await?;
    let state = Group {
        head,
        caller: membership,
        caller_revoked,
        prior: None,
    };
    state
        .may_repair(info.epoch, info.epoch_seq)
        .map_err(rejected)?;
    let stored = store::epochs::find(tx, group, info.epoch_seq)
        .await?
        .ok_or(TxError::Rejected(Error::Corrupt(
            "the current epoch is missing",
        )))?;
    let before = GroupInfo::parse(&stored.group_info, stored.group_info.len())
        .map_err(|_| TxError::Rejected(Error::Corrupt("a stored GroupInfo")))?;
    let roster = store::roster::keys(tx, group).await?;
    check_repair(home_domain, &before, &info.info, &roster, &info.leaves).map_err(rejected)?;
    let tree = store::tree::at(tx, group, info.epoch_seq).await?;
    let same_tree = tree
        .iter()
        .map(|(index, node)| (*index, node.as_slice()))
        .eq(info.tree.nodes());
    if stored.group_info == info.group_info && same_tree {
        return Ok(());
    }
    let rows = store::recovery::replace_group_info(
        tx,
        group,
        info.epoch_seq,
        &info.group_info,
        &info.group_state_hash,
        info.tree.width(),
    )
    .await?;
    if rows != 1 {
        return Err(TxError::Rejected(Error::Corrupt(
            "the current epoch vanished under the lock",
        )));
    }
    let (tree, hashes) = (&info.tree, &info.tree_hashes);
    store::tree::rewrite(tx, group, info.epoch_seq, tree, hashes).await?;
    metrics::counter!("chancery_ds_group_infos_repaired_total").increment(1);
    Ok(())
}
