//! Use case: one Commit. Lock, read under the lock, decide, append; all in one transaction.

use std::{collections::BTreeSet, sync::Arc};

use chancery_proto::{
    delivery::v1::{CommitResult, SubmitCommitResponse},
    key_package::KeyPackage,
};
use service_kit::db::{Transaction, TxError};

use crate::{
    access::caller::Caller,
    commands::send_message::append_send,
    error::Error,
    log::{
        entry::{Body, append_entry, outcome},
        message::{PreparedSend, named_epoch, replayed_send},
    },
    node::Node,
    ordering::{
        facts::{self, Known, KnownPackage},
        group::{self, Command, Decision, DeviceKey, Group, Head, Prior},
    },
    reading::pending_removals,
    request::{PreparedCommit, TreeAfter},
    store,
};

type Tx<'t> = &'t Transaction<'t>;
type TxResult<T> = Result<T, TxError<Error>>;

/// Takes one Commit with its Welcomes, GroupInfo, roster change, tree and first message.
///
/// # Errors
/// Every refusal of [`Group::decide`], or the database.
pub async fn submit_commit(
    node: &Node,
    caller: &Caller,
    commit: PreparedCommit,
) -> Result<SubmitCommitResponse, Error> {
    let commit = Arc::new(commit);
    let who = caller.clone();
    let times = Times {
        welcome_lifetime_seconds: node.config.limits.welcome_lifetime_seconds.into(),
        bar_seconds: node.config.bar_seconds,
    };
    let shared = commit.clone();
    let result = node
        .db
        .run_tx("submit_commit", move |tx| {
            let (commit, who) = (shared.clone(), who.clone());
            Box::pin(async move { commit_in(tx, &who, &commit, times).await })
        })
        .await
        .map_err(Error::from);
    let result = match result {
        Ok(result) => result,
        Err(error) => return Err(pending_removals::explain(node, &commit.group, error).await),
    };
    let head = result.first_message.as_ref().map_or(result.seq, |m| m.seq);
    node.hub.group_moved(&commit.group, head);
    for (device, _) in &commit.request.added {
        node.hub.device_changed(*device);
    }
    for (device, _) in &commit.request.removed {
        node.hub.device_changed(*device);
    }
    Ok(SubmitCommitResponse {
        results: vec![result],
    })
}

/// A refusal from inside a transaction, or the transaction's own failure.
/// What the options say about how long things last.
#[derive(Debug, Clone, Copy)]
struct Times {
    welcome_lifetime_seconds: u64,
    bar_seconds: u32,
}

async fn commit_in(
    tx: Tx<'_>,
    caller: &Caller,
    commit: &PreparedCommit,
    times: Times,
) -> TxResult<CommitResult> {
    let Some(head) = store::groups::lock(tx, &commit.group).await? else {
        return Err(TxError::Rejected(Error::no_group()));
    };
    let (group, now) = read_group(tx, &commit.group, commit.message_id, caller.key, head).await?;
    let request = &commit.request;
    let known = read_known(tx, caller, commit, &group, times.bar_seconds).await?;
    let facts = facts::facts(request, &known);
    let append = match group
        .decide(&Command::Commit(facts), now)
        .map_err(rejected)?
    {
        Decision::Replay(prior) => {
            return replayed_commit(tx, caller, commit, &group.head, &prior).await;
        }
        Decision::Append(append) => append,
    };
    let body = Body {
        kind: commit.entry_kind(),
        message_id: commit.message_id,
        content_hash: request.content_hash,
        payload: &commit.commit,
    };
    let head = append_entry(tx, &commit.group, &group.head, &append, body).await?;
    write_epoch(tx, commit, &known, &head, times.welcome_lifetime_seconds).await?;
    let first_message = match &commit.first_message {
        None => None,
        Some(first) => {
            let send = PreparedSend {
                epoch_seq: append.seq,
                ..first.clone()
            };
            let (group, now) =
                read_group(tx, &commit.group, send.message_id, caller.key, head.clone()).await?;
            Some(append_send(tx, caller, &send, &group, now).await?)
        }
    };
    Ok(CommitResult {
        seq: append.seq,
        epoch_seq: append.seq,
        epoch: append.head.epoch,
        chain: head.chain.to_vec().into(),
        outcome: outcome(&head, append.seq, None).into(),
        voided_by_seq: 0,
        replayed: false,
        accepted_at_micros: append.accepted_at,
        first_message,
    })
}

/// The second statement: everything that a decision needs and that may have changed while the lock was awaited.
pub(crate) async fn read_group(
    tx: Tx<'_>,
    group: &[u8],
    message_id: uuid::Uuid,
    caller: DeviceKey,
    head: Head,
) -> TxResult<(Group, i64)> {
    let now = store::groups::now(tx).await?;
    let prior = store::log::prior(tx, group, message_id, caller).await?;
    let (caller, caller_revoked) = read_caller(tx, group, caller).await?;
    let group = Group {
        head,
        caller,
        caller_revoked,
        prior,
    };
    Ok((group, now))
}

/// The caller's open membership, and whether it was revoked.
pub(crate) async fn read_caller(
    tx: Tx<'_>,
    group: &[u8],
    caller: DeviceKey,
) -> TxResult<(Option<group::Membership>, bool)> {
    let members = store::roster::current(tx, group, &[caller]).await?;
    let known = store::devices::find(tx, &[caller]).await?;
    Ok((
        members.first().map(|(_, membership)| *membership),
        known.first().is_some_and(|d| d.revoked),
    ))
}

/// What the server knows of the things that a Commit names.
async fn read_known(
    tx: Tx<'_>,
    caller: &Caller,
    commit: &PreparedCommit,
    state: &Group,
    bar_seconds: u32,
) -> TxResult<Known> {
    let (group, head, request) = (&commit.group, &state.head, &commit.request);
    let bar_is_over = match facts::bar_to_look_at(head, state.caller) {
        Some(seq) => store::recovery::bar_is_over(tx, group, seq, bar_seconds).await?,
        None => false,
    };
    let added: Vec<DeviceKey> = request.added.iter().map(|(key, _)| *key).collect();
    let removed: Vec<DeviceKey> = request.removed.iter().map(|(key, _)| *key).collect();
    if request.external {
        // A device that joins by itself may never have published anything.
        store::devices::remember(tx, caller.key, caller.user).await?;
    }
    let devices = store::devices::lock_added(tx, &added).await?;
    let seen_chain = match facts::chain_before_the_log(request.seen_seq) {
        Some(start) => Some(start),
        None => store::log::chain_at(tx, group, request.seen_seq).await?,
    };
    let (other_users, other_devices) = store::roster::others(
        tx,
        group,
        caller.key,
        caller.user,
        &removed,
        head.settled_seq,
    )
    .await?;
    let proposals = &request.proposals;
    Ok(Known {
        devices,
        members: store::roster::current(tx, group, &facts::named(request)).await?,
        pending: store::roster::pending(tx, group).await?,
        seen_chain,
        winner_seq: store::epochs::seq_of(tx, group, request.epoch.saturating_add(1)).await?,
        voided_by: named_epoch(tx, group, head, request.epoch_seq).await?.1,
        proposals: store::log::count_proposals(tx, group, head.epoch_seq, proposals).await?,
        packages: packages(tx, &request.welcomed).await?,
        bar_is_over,
        other_users,
        other_devices,
    })
}

async fn packages(tx: Tx<'_>, refs: &[Vec<u8>]) -> TxResult<Vec<KnownPackage>> {
    let rows = store::key_packages::by_refs(tx, refs).await?;
    let packages = rows.into_iter().map(|(reference, owner, body)| {
        let package = KeyPackage::parse(&body, body.len())
            .map_err(|_| TxError::Rejected(Error::Corrupt("a stored KeyPackage")))?;
        Ok(KnownPackage {
            reference,
            owner,
            leaf: package.leaf.encoded(),
        })
    });
    packages.collect()
}

/// Roster, epoch, tree and Welcomes of an accepted Commit.
async fn write_epoch(
    tx: Tx<'_>,
    commit: &PreparedCommit,
    known: &Known,
    head: &Head,
    welcome_lifetime_seconds: u64,
) -> TxResult<()> {
    let (group, seq) = (&commit.group, head.seq);
    let removed: Vec<DeviceKey> = commit.request.removed.iter().map(|(key, _)| *key).collect();
    let closed = store::roster::close(tx, group, seq, &removed).await?;
    if closed != removed.len() as u64 {
        return Err(TxError::Rejected(Error::Corrupt(
            "a removed member was not in the roster",
        )));
    }
    let added = commit.request.added.iter();
    let joiners: Vec<store::roster::Joiner> = added
        .map(|(key, user)| {
            let place = commit.leaves.get(key);
            store::roster::Joiner {
                key: *key,
                user: *user,
                leaf_index: place.map(|place| place.index),
                signature_key: place.map(|place| place.signature_key.clone()),
            }
        })
        .collect();
    store::roster::open(tx, group, seq, &joiners).await?;
    let epoch = store::epochs::Epoch {
        epoch: head.epoch,
        epoch_seq: seq,
        group_info: commit.group_info.clone(),
        group_state_hash: commit.group_state_hash.to_vec(),
        tree_width: commit.tree.width,
        encrypted_group_info: commit.encrypted_group_info.clone(),
        floor_seq: Some(head.floor_seq),
        committer: head.committer,
    };
    store::epochs::insert(tx, group, &epoch).await?;
    write_tree(tx, group, head, &commit.tree).await?;
    for (reference, secrets) in &commit.secrets {
        let package = known.packages.iter().find(|p| p.reference == *reference);
        let owner = package.map(|package| package.owner);
        let owner = owner.ok_or(TxError::Rejected(Error::Corrupt(
            "a Welcome for nobody was accepted",
        )))?;
        store::welcomes::insert(
            tx,
            group,
            seq,
            owner,
            reference,
            secrets,
            welcome_lifetime_seconds,
        )
        .await?;
    }
    Ok(())
}

/// The nodes and hashes of a new epoch; what only older ones were made of goes, where nobody needs them.
async fn write_tree(tx: Tx<'_>, group: &[u8], head: &Head, tree: &TreeAfter) -> TxResult<()> {
    store::tree::insert(tx, group, head.seq, &tree.changes).await?;
    store::tree::insert_hashes(tx, group, head.seq, &tree.hashes).await?;
    let written: BTreeSet<u32> = tree
        .changes
        .iter()
        .map(|(index, _)| *index)
        .chain(tree.hashes.keys().copied())
        .collect();
    let written: Vec<u32> = written.into_iter().collect();
    let oldest = store::tree::oldest_kept(tx, group, head.settled_seq).await?;
    store::tree::prune(tx, group, oldest, &written).await?;
    Ok(())
}

async fn replayed_commit(
    tx: Tx<'_>,
    caller: &Caller,
    commit: &PreparedCommit,
    head: &Head,
    prior: &Prior,
) -> TxResult<CommitResult> {
    let first_message = match &commit.first_message {
        None => None,
        Some(first) => store::log::prior(tx, &commit.group, first.message_id, caller.key)
            .await?
            .map(|prior| replayed_send(first, head, &prior)),
    };
    Ok(CommitResult {
        seq: prior.seq,
        epoch_seq: prior.seq,
        epoch: prior.epoch + 1,
        chain: prior.chain.to_vec().into(),
        outcome: outcome(head, prior.seq, prior.voided_by).into(),
        voided_by_seq: prior.voided_by.unwrap_or(0),
        replayed: true,
        accepted_at_micros: prior.accepted_at,
        first_message,
    })
}

fn rejected(rejection: group::Rejection) -> TxError<Error> {
    TxError::Rejected(rejection.into())
}
