//! One batch in one transaction.
//!
//! Where everything is remembered that the decisions need ([`crate::log::batch::optimistic`]), one round trip: BEGIN, what is written, a look that nothing was said of any
//! device, COMMIT. What is written fails unless every head is as it was remembered, once it is locked; the look is a statement of its own, behind the locks.
//!
//! Otherwise two. The first carries BEGIN and four statements one after the other: the heads' lock, *then* what the decisions need. They are never
//! one statement: each sees what was committed before it began, and what is read must not be older than the lock. The second carries what is written
//! and COMMIT.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use futures_util::{
    TryFutureExt as _,
    future::{try_join, try_join4, try_join5},
};
use service_kit::db::{Object, Pipeline, TxError};
use uuid::Uuid;

use crate::{
    access::caller,
    error::Error,
    hub::head_cache::{self, Found},
    log::{
        batch::{
            Answer, Message, Outcome, Wait,
            lookups::{Asked, Sender},
            optimistic::Foresight,
        },
        entry::chain_after,
        message::{Named, accepted, body, command, named_epoch, replayed_send},
    },
    ordering::group::{Decision, Group, Head, Membership, Prior},
    store::{
        self,
        devices::{NothingSaid, Standings},
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
    /// The groups of the batch.
    pub(super) places: BTreeMap<Vec<u8>, Place>,
    /// By message, where they were looked up: who sends, and how far the status feeds were applied.
    senders: Option<(Vec<Sender>, Arc<str>)>,
    /// The database's time, Unix microseconds.
    pub(super) now: i64,
}

impl Written {
    /// What can be remembered of it.
    pub(super) fn found(&self) -> impl Iterator<Item = Found<'_>> {
        self.places.iter().map(|(group, place)| Found {
            group,
            before: &place.before,
            after: &place.now,
        })
    }

    /// Tells what is worth remembering.
    pub(super) fn teach(&self, memory: &head_cache::Remembered, messages: &[Arc<Message>]) {
        let Some((senders, feeds)) = &self.senders else {
            memory.wrote(self.found());
            return;
        };
        let told = messages.iter().zip(senders).zip(&self.outcomes);
        let senders = told
            .filter_map(|((message, sender), outcome)| sender.known(message, outcome.is_repeat()));
        memory.learn(feeds, self.found(), senders);
    }
}

/// A group of the batch: as it was locked, or remembered, and as it is after the messages so far.
pub(super) struct Place {
    before: Head,
    now: Head,
}

impl Place {
    fn new(head: Head) -> Self {
        Self {
            before: head.clone(),
            now: head,
        }
    }

    /// The last seq, if it moved.
    pub(super) fn moved_to(&self) -> Option<u64> {
        (self.now.seq > self.before.seq).then_some(self.now.seq)
    }
}

/// Locks, reads, decides on one message after the other, and writes what was accepted.
pub(super) async fn append(
    tx: &Pipeline,
    messages: &[Arc<Message>],
    wait: Wait,
) -> TxResult<Written> {
    let read = Read::under_lock(tx, messages, wait).await?;
    let mut batch = Batch::new(read.heads);
    let mut outcomes = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let facts = (read.senders.get(index), read.priors.get(&index), read.now);
        outcomes.push(batch.decide(tx.client(), message, facts, wait).await?);
    }
    if !batch.rows.is_empty() {
        batch.write(tx).await?;
    }
    Ok(Written {
        outcomes,
        places: batch.places,
        senders: Some((read.senders, read.feeds)),
        now: read.now,
    })
}

/// Writes what was foreseen. Nothing is written where anything is not as it was remembered.
pub(super) async fn append_foreseen(
    tx: &Pipeline,
    messages: &[Arc<Message>],
    foresight: &Foresight,
    lock_millis: u32,
) -> TxResult<Written> {
    let heads = foresight.heads.iter();
    let places = heads.map(|(group, head)| (group.clone(), Place::new(head.clone())));
    let mut batch = Batch::new(places.collect());
    let mut outcomes = Vec::with_capacity(messages.len());
    for (message, membership) in messages.iter().zip(&foresight.memberships) {
        let facts = (Some(*membership), false, None);
        let epoch = foresight.heads.get(&message.send.group).map(|h| h.epoch);
        let answer = batch.take(message, facts, (epoch, None), foresight.now);
        // Decided before, and in the same way.
        outcomes.push(Outcome::Answer(Ok(answer.map_err(TxError::Rejected)?)));
    }
    let client = tx.client();
    let (append, nothing_said) =
        try_join(AppendMany::prepare(client), NothingSaid::prepare(client)).await?;
    let ((), (), now, ()) = try_join4(
        tx.begin(Some(lock_millis)).err_into(),
        batch.append(client, &append),
        nothing_said.run(client, &foresight.feeds).err_into(),
        tx.commit().err_into(),
    )
    .await?;
    Ok(Written {
        outcomes,
        places: batch.places,
        senders: None,
        now,
    })
}

/// What was read under the lock.
struct Read {
    heads: BTreeMap<Vec<u8>, Place>,
    /// By message.
    senders: Vec<Sender>,
    /// How far the status feeds were applied when the senders were looked up.
    feeds: Arc<str>,
    /// By message, where there is one.
    priors: HashMap<usize, Prior>,
    now: i64,
}

impl Read {
    async fn under_lock(tx: &Pipeline, messages: &[Arc<Message>], wait: Wait) -> TxResult<Self> {
        let asked = Asked::of(messages.iter().map(|message| &**message));
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
        let ((), heads, (memberships, now), (standings, feeds), priors) = try_join5(
            tx.begin(briefly),
            lock.run(client, &asked.groups),
            memberships.run(client, asked.members()),
            standings.run(client, asked.devices()),
            find_priors.run(client, &priors),
        )
        .await?;
        let heads = heads.into_iter();
        Ok(Self {
            heads: heads
                .map(|(group, head)| (group, Place::new(head)))
                .collect(),
            feeds,
            senders: asked.senders(&memberships, standings),
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
    fn new(places: BTreeMap<Vec<u8>, Place>) -> Self {
        Self {
            places,
            written: HashMap::new(),
            rows: Vec::new(),
            named: HashMap::new(),
        }
    }

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
        let Some(place) = self.places.get(&send.group) else {
            return Ok(match wait {
                Wait::PassOver => Outcome::PassedOver,
                Wait::Briefly(_) | Wait::ForLock => Outcome::Answer(Err(Error::no_group())),
            });
        };
        let key = (send.group.as_slice(), send.epoch_seq);
        let named = match self.named.get(&key) {
            Some(named) => *named,
            None => named_epoch(client, &send.group, &place.now, send.epoch_seq).await?,
        };
        self.named.insert(key, named);
        let facts = (sender.membership, sender.standing.revoked, prior);
        Ok(Outcome::Answer(self.take(message, facts, named, now)))
    }

    /// Decides on one message and, if it is accepted, gives it its place.
    fn take(
        &mut self,
        message: &'m Message,
        (membership, revoked, prior): (Option<Membership>, bool, Option<&Prior>),
        named: Named,
        now: i64,
    ) -> Answer {
        let send = &message.send;
        let place = self.places.get_mut(&send.group);
        let place = place.ok_or_else(Error::no_group)?;
        let key = (send.group.as_slice(), send.message_id);
        let group = Group {
            head: place.now.clone(),
            caller: membership,
            caller_revoked: revoked,
            prior: self.written.get(&key).or(prior).cloned(),
        };
        let append = match group.decide(&command(message.sender, send, named), now)? {
            Decision::Replay(prior) => return Ok(replayed_send(send, &group.head, &prior)),
            Decision::Append(append) => append,
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
        Ok(answer)
    }

    fn moved(&self) -> impl Iterator<Item = (&[u8], &Place)> {
        let places = self.places.iter();
        places
            .filter(|(_, place)| place.moved_to().is_some())
            .map(|(group, place)| (group.as_slice(), place))
    }

    /// One statement.
    async fn append(&self, client: &Object, statement: &AppendMany) -> TxResult<()> {
        let moves = self.moved().map(|(group, place)| HeadMove {
            group,
            before: &place.before,
            after: &place.now,
        });
        let moves: Vec<HeadMove<'_>> = moves.collect();
        let appended = statement.run(client, &moves, &self.rows).await?;
        if appended != self.rows.len() as u64 {
            return Err(TxError::Rejected(Error::Corrupt(
                "fewer entries than were accepted",
            )));
        }
        Ok(())
    }

    /// The same, what goes with it, and the COMMIT.
    async fn write(&self, tx: &Pipeline) -> TxResult<()> {
        let client = tx.client();
        let append = AppendMany::prepare(client).await?;
        let settled = self
            .moved()
            .filter(|(_, place)| place.now.settled_seq > place.before.settled_seq);
        for (group, place) in settled {
            store::epochs::forget_committers(client, group, place.now.settled_seq).await?;
        }
        try_join(self.append(client, &append), tx.commit().err_into()).await?;
        Ok(())
    }
}
