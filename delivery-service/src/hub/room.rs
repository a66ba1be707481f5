//! One group as this node's streams follow it.

use std::sync::{Arc, Mutex, Weak};

use crate::hub::{
    Bell, GroupId, Woken, held,
    tail::{Next, Piece, Position, Tail},
};

/// A group that somebody follows: who, and what is shared among them.
#[derive(Debug)]
pub struct Room {
    id: GroupId,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bells: Vec<Weak<Bell>>,
    /// Highest head that this node heard of.
    head_seq: u64,
    reading: Reading,
    /// Something was shared since the last sweep.
    fresh: bool,
    tail: Tail,
}

/// What the common reader does about a room.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Reading {
    #[default]
    Idle,
    /// The room waits for it.
    Queued,
    /// It reads.
    Now,
    /// It reads, and what it reads may be old already.
    Again,
}

impl Inner {
    /// There is something to read. True if nobody was called for it yet.
    fn call(&mut self) -> bool {
        let before = self.reading;
        self.reading = match before {
            Reading::Idle | Reading::Queued => Reading::Queued,
            Reading::Now | Reading::Again => Reading::Again,
        };
        before == Reading::Idle
    }
}

impl Room {
    pub(super) fn new(id: GroupId) -> Self {
        Self {
            id,
            inner: Mutex::default(),
        }
    }

    /// The group's id.
    pub fn id(&self) -> &GroupId {
        &self.id
    }

    pub(super) fn enter(&self, bell: &Arc<Bell>) {
        held(&self.inner).bells.push(Arc::downgrade(bell));
    }

    /// Streams that follow it.
    pub(super) fn bells(&self) -> Vec<Arc<Bell>> {
        let inner = held(&self.inner);
        inner.bells.iter().filter_map(Weak::upgrade).collect()
    }

    /// Forgets streams that ended, and what followers had their time to take; false if nobody follows any more.
    pub(super) fn sweep(&self) -> bool {
        let mut inner = held(&self.inner);
        inner.bells.retain(|bell| bell.strong_count() > 0);
        if !std::mem::replace(&mut inner.fresh, false) {
            inner.tail.forget_pieces();
        }
        !inner.bells.is_empty()
    }

    /// The head is at least there. True if somebody has to read, who was not called yet.
    pub(super) fn moved(&self, head_seq: u64) -> bool {
        let mut inner = held(&self.inner);
        let news = head_seq > inner.head_seq;
        inner.head_seq = inner.head_seq.max(head_seq);
        news && inner.call()
    }

    /// Something changed that is not known. True if somebody has to read, who was not called yet.
    pub(super) fn changed(&self) -> bool {
        held(&self.inner).call()
    }

    /// The highest head that this node heard of.
    pub fn head_seq(&self) -> u64 {
        held(&self.inner).head_seq
    }

    /// A follower has read everything up to here. True if there is more meanwhile, and somebody has to read it.
    pub(super) fn begin(&self, position: Position) -> bool {
        let mut inner = held(&self.inner);
        let begun = inner.tail.begin(position);
        let more = inner.head_seq > position.seq;
        begun && more && inner.call()
    }

    /// What comes for a follower that has read up to `after`.
    pub fn next(&self, after: u64) -> Next {
        held(&self.inner).tail.next(after)
    }

    /// The common reader begins to read, from here.
    pub(super) fn read_from(&self) -> Option<Position> {
        let mut inner = held(&self.inner);
        inner.reading = Reading::Now;
        inner.tail.position()
    }

    /// The common reader has read. True if it has to read again.
    pub(super) fn was_read(&self, more: bool) -> bool {
        let mut inner = held(&self.inner);
        let again = more || inner.reading == Reading::Again;
        inner.reading = if again {
            Reading::Queued
        } else {
            Reading::Idle
        };
        again
    }

    /// The common reader could not read: the next news call it again, or the poll.
    pub(super) fn was_missed(&self) {
        let mut inner = held(&self.inner);
        inner.reading = Reading::Idle;
        inner.head_seq = inner.tail.position().map_or(0, |at| at.seq);
    }

    /// Shares pieces with all followers, and wakes them.
    pub fn share(&self, pieces: Vec<Piece>, position: Position) {
        let mut inner = held(&self.inner);
        if inner.tail.push(pieces, position) {
            inner.fresh = true;
            drop(inner);
            self.ring();
        }
    }

    /// Followers have to read for themselves.
    pub fn scatter(&self) {
        held(&self.inner).tail.reset();
        self.ring();
    }

    /// Without the lock: whoever is woken takes it at once.
    fn ring(&self) {
        for bell in self.bells() {
            bell.ring(|woken: &mut Woken| {
                woken.groups.insert(self.id.clone());
            });
        }
    }
}
