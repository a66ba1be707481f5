//! One batch in one transaction.
//!
//! Three round trips and the COMMIT. The first carries three statements one after the other: the heads' lock, *then* what the decisions need. They
//! are never one statement: each sees what was committed before it began, and what is read must not be older than the lock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures_util::future::try_join3;
use service_kit::db::{Transaction, TxError};
use uuid::Uuid;

use super::{Message, Outcome, Wait};
use crate::{
    append::chain_after,
    caller,
    error::Error,
    group::{Decision, Group, Head, Prior},
    send::{Named, accepted, body, command, named_epoch, replayed_send},
    store::{
        self,
        groups::HeadMove,
        log::{EntryRow, PriorQuery},
        roster::{Sender, SenderQuery},
    },
};

type TxResult<T> = Result<T, TxError<Error>>;

/// What a batch left behind.
pub(super) struct Written {
    /// For each message.
    pub(super) outcomes: Vec<Outcome>,
    /// Groups that moved, with their last seq.
    pub(super) heads: Vec<(Vec<u8>, u64)>,
    /// The database's time, Unix microseconds.
    pub(super) now: i64,
}

/// A group of the batch: as it was locked, and as it is after the messages so far.
struct Place {
    before: Head,
    now: Head,
}

/// Locks, reads, decides on one message after the other, and writes what was accepted.
pub(super) async fn append(
    tx: &Transaction<'_>,
    messages: &[Arc<Message>],
    wait: Wait,
) -> TxResult<Written> {
    let read = Read::under_lock(tx, messages, wait).await?;
    let mut batch = Batch {
        places: read.heads,
        written: HashMap::new(),
        rows: Vec::new(),
        named: HashMap::new(),
    };
    let mut outcomes = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let facts = (read.senders.get(index), read.priors.get(&index), read.now);
        outcomes.push(batch.decide(tx, message, facts, wait).await?);
    }
    let heads = batch.write(tx).await?;
    Ok(Written {
        outcomes,
        heads,
        now: read.now,
    })
}

/// What was read under the lock.
struct Read {
    heads: BTreeMap<Vec<u8>, Place>,
    /// By message.
    senders: Vec<Sender>,
    /// By message, where there is one.
    priors: HashMap<usize, Prior>,
    now: i64,
}

impl Read {
    async fn under_lock(
        tx: &Transaction<'_>,
        messages: &[Arc<Message>],
        wait: Wait,
    ) -> TxResult<Self> {
        let mut groups: Vec<&[u8]> = messages.iter().map(|m| m.send.group.as_slice()).collect();
        groups.sort_unstable();
        groups.dedup();
        // Whoever sends much is looked up once.
        let mut senders: Vec<SenderQuery<'_>> = Vec::new();
        let mut places: HashMap<SenderQuery<'_>, usize> = HashMap::new();
        let sent_by: Vec<usize> = messages
            .iter()
            .map(|m| {
                let query = SenderQuery {
                    group: &m.send.group,
                    device: m.sender,
                    user: m.user,
                };
                *places.entry(query).or_insert_with(|| {
                    senders.push(query);
                    senders.len() - 1
                })
            })
            .collect();
        let priors: Vec<PriorQuery<'_>> = messages
            .iter()
            .map(|m| PriorQuery {
                group: &m.send.group,
                message_id: m.send.message_id,
                reader: m.sender,
            })
            .collect();
        // Prepared first: from here each is sent when it is first polled, in this order.
        let lock = store::groups::LockMany::prepare(tx, wait == Wait::PassOver).await?;
        let read_senders = store::roster::Senders::prepare(tx).await?;
        let read_priors = store::log::Priors::prepare(tx).await?;
        let (heads, (senders, now), priors) = try_join3(
            lock.run(tx, &groups),
            read_senders.run(tx, &senders),
            read_priors.run(tx, &priors),
        )
        .await?;
        let heads = heads.into_iter().map(|(group, head)| {
            let place = Place {
                before: head.clone(),
                now: head,
            };
            (group, place)
        });
        let of = |place: &usize| senders.get(*place).copied();
        Ok(Self {
            heads: heads.collect(),
            senders: sent_by.iter().filter_map(of).collect(),
            priors: priors.into_iter().collect(),
            now,
        })
    }
}

struct Batch<'m> {
    places: BTreeMap<Vec<u8>, Place>,
    /// Ids that this batch has given a place, by group.
    written: HashMap<(&'m [u8], Uuid), Prior>,
    rows: Vec<EntryRow<'m>>,
    /// Epochs that messages named and that are not current.
    named: HashMap<(&'m [u8], u64), Named>,
}

impl<'m> Batch<'m> {
    async fn decide(
        &mut self,
        tx: &Transaction<'_>,
        message: &'m Message,
        (sender, prior, now): (Option<&Sender>, Option<&Prior>, i64),
        wait: Wait,
    ) -> TxResult<Outcome> {
        let send = &message.send;
        let sender = sender.ok_or(TxError::Rejected(Error::Corrupt("a sender was not read")))?;
        if let Err(refusal) = caller::check_standing(&sender.standing, message.user) {
            return Ok(Outcome::Answer(Err(refusal)));
        }
        let Some(place) = self.places.get_mut(&send.group) else {
            return Ok(match wait {
                Wait::PassOver => Outcome::PassedOver,
                Wait::ForLock => Outcome::Answer(Err(Error::no_group())),
            });
        };
        let key = (send.group.as_slice(), send.message_id);
        let group = Group {
            head: place.now.clone(),
            caller: sender.membership,
            caller_revoked: sender.standing.revoked,
            prior: self.written.get(&key).or(prior).cloned(),
        };
        let named = match self.named.get(&(key.0, send.epoch_seq)) {
            Some(named) => *named,
            None => named_epoch(tx, &send.group, &group.head, send.epoch_seq).await?,
        };
        self.named.insert((key.0, send.epoch_seq), named);
        let append = match group.decide(&command(message.sender, send, named), now) {
            Err(rejection) => return Ok(Outcome::Answer(Err(rejection.into()))),
            Ok(Decision::Replay(prior)) => {
                return Ok(Outcome::Answer(Ok(replayed_send(
                    send,
                    &group.head,
                    &prior,
                ))));
            }
            Ok(Decision::Append(append)) => append,
        };
        let body = body(send);
        let chain = chain_after(&send.group, &group.head, &append, &body);
        place.now = Head {
            chain,
            last_at: append.accepted_at,
            ..append.head.clone()
        };
        let answer = accepted(send, &append, &place.now);
        let row = EntryRow {
            group: &send.group,
            seq: append.seq,
            epoch: append.epoch,
            epoch_seq: append.epoch_seq,
            kind: body.kind as i16,
            message_id: send.message_id,
            accepted_at: append.accepted_at,
            content_hash: send.content_hash,
            chain,
            payload: body.payload,
        };
        self.written.insert(key, row.as_prior());
        self.rows.push(row);
        Ok(Outcome::Answer(Ok(answer)))
    }

    /// One insert, one update; returns the groups that moved.
    async fn write(self, tx: &Transaction<'_>) -> TxResult<Vec<(Vec<u8>, u64)>> {
        if self.rows.is_empty() {
            return Ok(Vec::new());
        }
        let moved: Vec<(&Vec<u8>, &Place)> = self
            .places
            .iter()
            .filter(|(_, place)| place.now.seq > place.before.seq)
            .collect();
        let moves: Vec<HeadMove<'_>> = moved
            .iter()
            .map(|(group, place)| HeadMove {
                group,
                before: &place.before,
                after: &place.now,
            })
            .collect();
        let (inserted, advanced) = futures_util::future::try_join(
            store::log::append_many(tx, &self.rows),
            store::groups::advance_many(tx, &moves),
        )
        .await?;
        if inserted != self.rows.len() as u64 || advanced != moves.len() as u64 {
            return Err(TxError::Rejected(Error::Corrupt(
                "a head moved under the lock",
            )));
        }
        for (group, place) in &moved {
            if place.now.settled_seq > place.before.settled_seq {
                store::groups::forget_committers(tx, group, place.now.settled_seq).await?;
            }
        }
        Ok(moved
            .into_iter()
            .map(|(group, place)| (group.clone(), place.now.seq))
            .collect())
    }
}
