//! One batch in one transaction.
//!
//! Two round trips. The first carries BEGIN and four statements one after the other: the heads' lock, *then* what the decisions need. They are never
//! one statement: each sees what was committed before it began, and what is read must not be older than the lock. The second carries what is written
//! and COMMIT.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use futures_util::future::{try_join, try_join4, try_join5};
use service_kit::db::{Object, Pipeline, TxError};
use uuid::Uuid;

use super::{Message, Outcome, Wait};
use crate::{
    append::chain_after,
    caller,
    error::Error,
    group::{Decision, Group, Head, Membership, Prior},
    send::{Named, accepted, body, command, named_epoch, replayed_send},
    store::{
        self,
        devices::{Standing, Standings},
        groups::{HeadMove, LockMany},
        log::{AppendMany, EntryRow, PriorQuery, Priors},
        roster::Memberships,
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
    tx: &Pipeline,
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
        outcomes.push(batch.decide(tx.client(), message, facts, wait).await?);
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

/// Who sends, as of the lock.
#[derive(Clone, Copy)]
struct Sender {
    membership: Option<Membership>,
    standing: Standing,
}

impl Read {
    async fn under_lock(tx: &Pipeline, messages: &[Arc<Message>], wait: Wait) -> TxResult<Self> {
        let mut groups: Vec<&[u8]> = messages.iter().map(|m| m.send.group.as_slice()).collect();
        groups.sort_unstable();
        groups.dedup();
        // Whoever sends much is looked up once.
        let mut members = Distinct::default();
        let mut devices = Distinct::default();
        for message in messages {
            members.put((message.send.group.as_slice(), message.sender));
            devices.put((message.sender, message.user));
        }
        let priors: Vec<PriorQuery<'_>> = messages
            .iter()
            .map(|m| PriorQuery {
                group: &m.send.group,
                message_id: m.send.message_id,
                reader: m.sender,
            })
            .collect();
        // Prepared first: from here each is sent when it is first polled, in this order.
        let client = tx.client();
        let (lock, memberships, standings, find_priors) = try_join4(
            LockMany::prepare(client, wait == Wait::PassOver),
            Memberships::prepare(client),
            Standings::prepare(client),
            Priors::prepare(client),
        )
        .await?;
        let briefly = match wait {
            Wait::Briefly(millis) => Some(millis),
            Wait::PassOver | Wait::ForLock => None,
        };
        let ((), heads, (memberships, now), standings, priors) = try_join5(
            tx.begin(briefly),
            lock.run(client, &groups),
            memberships.run(client, &members.items),
            standings.run(client, &devices.items),
            find_priors.run(client, &priors),
        )
        .await?;
        let standings: HashMap<usize, Standing> = standings.into_iter().collect();
        let sender = |(member, device): (&usize, &usize)| {
            Some(Sender {
                membership: *memberships.get(*member)?,
                standing: *standings.get(device)?,
            })
        };
        let heads = heads.into_iter().map(|(group, head)| {
            let place = Place {
                before: head.clone(),
                now: head,
            };
            (group, place)
        });
        Ok(Self {
            heads: heads.collect(),
            senders: members
                .places
                .iter()
                .zip(&devices.places)
                .filter_map(sender)
                .collect(),
            priors: priors.into_iter().collect(),
            now,
        })
    }
}

/// A list without repetitions, and where each thing that was put stands in it.
struct Distinct<T> {
    items: Vec<T>,
    known: HashMap<T, usize>,
    places: Vec<usize>,
}

impl<T> Default for Distinct<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            known: HashMap::new(),
            places: Vec::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Distinct<T> {
    fn put(&mut self, item: T) {
        let place = *self.known.entry(item).or_insert_with(|| {
            self.items.push(item);
            self.items.len() - 1
        });
        self.places.push(place);
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
        client: &Object,
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
                Wait::Briefly(_) | Wait::ForLock => Outcome::Answer(Err(Error::no_group())),
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
            None => named_epoch(client, &send.group, &group.head, send.epoch_seq).await?,
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
        let row = body.at(&send.group, &append, chain);
        self.written.insert(key, row.as_prior());
        self.rows.push(row);
        Ok(Outcome::Answer(Ok(answer)))
    }

    /// One statement and the COMMIT; returns the groups that moved.
    async fn write(self, tx: &Pipeline) -> TxResult<Vec<(Vec<u8>, u64)>> {
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
        let client = tx.client();
        let append = AppendMany::prepare(client).await?;
        let settled = moved
            .iter()
            .filter(|(_, place)| place.now.settled_seq > place.before.settled_seq);
        for (group, place) in settled {
            store::groups::forget_committers(client, group, place.now.settled_seq).await?;
        }
        let (appended, ()) = try_join(append.run(client, &moves, &self.rows), tx.commit()).await?;
        if appended != self.rows.len() as u64 {
            return Err(TxError::Rejected(Error::Corrupt(
                "fewer entries than were accepted",
            )));
        }
        Ok(moved
            .into_iter()
            .map(|(group, place)| (group.clone(), place.now.seq))
            .collect())
    }
}
