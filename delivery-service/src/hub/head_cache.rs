//! What a node remembers of the groups that it wrote to last: their heads, who sends there, and which devices may call. With it a batch is written without
//! asking first (decision 0011).
//!
//! Nothing here is believed. The statement that writes compares each head with the one that was remembered, after it has the lock, and the next one
//! compares how far the status feeds were applied; where either differs, nothing is written and the batch takes the way that locks and reads.
//! So what is remembered may be old or gone, and costs time then, never truth.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use uuid::Uuid;

use crate::ordering::group::{DeviceKey, Head, Membership};

/// Senders that are remembered of one group.
const SENDERS: usize = 1_024;
/// The longest row of good turns that is asked for.
const DEEPEST: u8 = 63;

/// How often something must turn out as remembered before it is relied on again: twice as often after each disappointment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Doubt(u8);

impl Doubt {
    fn deepen(&mut self) {
        self.0 = self.0.saturating_mul(2).saturating_add(1).min(DEEPEST);
    }

    fn ease(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    fn is_none(self) -> bool {
        self.0 == 0
    }
}

#[derive(Debug)]
struct Known {
    head: Head,
    doubt: Doubt,
    /// Somebody else has moved it on.
    moved: bool,
    /// Sorted. They hold for this head: a membership changes with an entry only.
    senders: Vec<(DeviceKey, Membership)>,
}

impl Known {
    fn items(&self) -> usize {
        1 + self.senders.len()
    }

    fn is_settled(&self) -> bool {
        self.head.committer.is_none()
    }

    fn sender(&self, device: DeviceKey) -> Option<Membership> {
        let place = self.senders.binary_search_by_key(&device, |(key, _)| *key);
        Some(self.senders[place.ok()?].1)
    }

    fn put_sender(&mut self, device: DeviceKey, membership: Membership) {
        match self.senders.binary_search_by_key(&device, |(key, _)| *key) {
            Ok(place) => self.senders[place].1 = membership,
            Err(_) if self.senders.len() >= SENDERS => {
                // So many do not come again soon.
                self.senders = vec![(device, membership)];
            }
            Err(place) => {
                self.senders.reserve_exact(1);
                self.senders.insert(place, (device, membership));
            }
        }
    }
}

#[derive(Debug)]
struct Memory {
    groups: LruCache<Vec<u8>, Known>,
    /// Groups and their senders.
    items: usize,
    most: usize,
    /// How far the status feeds were applied when `callers` were looked up.
    feeds: Option<Arc<str>>,
    /// Devices that may call, with the user that they are known by.
    callers: LruCache<(DeviceKey, Uuid), Doubt>,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Remembered(Arc<Mutex<Memory>>);

impl Default for Remembered {
    /// Remembers nothing.
    fn default() -> Self {
        Self::new(0)
    }
}

/// What was found of one group, and what was left there.
#[derive(Debug)]
pub struct Found<'a> {
    /// The group.
    pub group: &'a [u8],
    /// Its head as it was read.
    pub before: &'a Head,
    /// And as it is after COMMIT; the same where nothing was written.
    pub after: &'a Head,
}

/// A sender that was looked up, after the head of its group.
#[derive(Debug)]
pub struct Sender<'a> {
    /// Where it sends to.
    pub group: &'a [u8],
    /// The device.
    pub device: DeviceKey,
    /// Its user by the token, which is the one that is known.
    pub user: Uuid,
    /// In the group.
    pub membership: Membership,
    /// It sent what it had sent before: only a look tells.
    pub repeats: bool,
}

impl Remembered {
    /// Room for so many groups and senders of theirs, and for as many callers; 0 remembers nothing.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Memory {
            groups: LruCache::unbounded(),
            items: 0,
            most,
            feeds: None,
            callers: LruCache::unbounded(),
        })))
    }

    fn held(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For several questions that must be answered as of one moment.
    pub fn open(&self) -> Open<'_> {
        Open(self.held())
    }

    /// A group moved on: what is remembered of an earlier head is of no use.
    pub fn moved(&self, group: &[u8], head_seq: u64) {
        if let Some(known) = self.held().groups.peek_mut(group)
            && known.head.seq < head_seq
        {
            known.moved = true;
        }
    }

    /// Groups were written to as was foreseen.
    pub fn wrote<'a>(&self, written: impl Iterator<Item = Found<'a>>) {
        let mut memory = self.held();
        for found in written {
            if let Some(known) = memory.groups.get_mut(found.group)
                && known.head == *found.before
            {
                known.head = found.after.clone();
            }
        }
    }

    /// Something was not as foreseen in one of these groups.
    pub fn disappointed<'a>(&self, groups: impl Iterator<Item = &'a [u8]>) {
        let mut memory = self.held();
        for group in groups {
            if let Some(known) = memory.groups.peek_mut(group) {
                known.doubt.deepen();
            }
        }
    }

    /// Remembers what was read, and what was left. `feeds` says how far the status feeds were applied.
    pub fn learn<'a>(
        &self,
        feeds: &Arc<str>,
        found: impl Iterator<Item = Found<'a>>,
        senders: impl Iterator<Item = Sender<'a>>,
    ) {
        let mut memory = self.held();
        if memory.most == 0 {
            return;
        }
        for found in found {
            memory.put_head(&found);
        }
        if memory.feeds.as_ref() != Some(feeds) {
            memory.callers.clear();
            memory.feeds = Some(feeds.clone());
        }
        for sender in senders {
            memory.put_sender(&sender);
        }
        memory.forget_the_oldest();
    }
}

impl Memory {
    fn put_head(&mut self, found: &Found<'_>) {
        let Some(known) = self.groups.get_mut(found.group) else {
            let known = Known {
                head: found.after.clone(),
                doubt: Doubt::default(),
                moved: false,
                senders: Vec::new(),
            };
            self.items += known.items();
            self.groups.put(found.group.to_vec(), known);
            return;
        };
        if (known.head.seq, known.head.chain) == (found.before.seq, found.before.chain) {
            known.doubt.ease();
        } else {
            // That it moved on is no disappointment where it was told.
            if !known.moved {
                known.doubt.deepen();
            }
            self.items -= known.senders.len();
            known.senders = Vec::new();
        }
        known.moved = false;
        known.head = found.after.clone();
    }

    fn put_sender(&mut self, sender: &Sender<'_>) {
        if let Some(known) = self.groups.peek_mut(sender.group) {
            let before = known.items();
            known.put_sender(sender.device, sender.membership);
            self.items = self.items - before + known.items();
        }
        let key = (sender.device, sender.user);
        let doubt = self.callers.get_or_insert_mut(key, Doubt::default);
        if sender.repeats {
            doubt.deepen();
        } else {
            doubt.ease();
        }
    }

    fn forget_the_oldest(&mut self) {
        while self.items > self.most
            && let Some((_, known)) = self.groups.pop_lru()
        {
            self.items -= known.items();
        }
        while self.callers.len() > self.most {
            self.callers.pop_lru();
        }
    }
}

/// What is remembered at one moment.
#[derive(Debug)]
pub struct Open<'m>(MutexGuard<'m, Memory>);

impl Open<'_> {
    /// How far the status feeds were applied when the callers were looked up; none if none was.
    pub fn feeds(&self) -> Option<Arc<str>> {
        self.0.feeds.clone()
    }

    /// The head of a group that can be relied on. An epoch that is not settled yet can be without any entry: its groups are left to whoever looks.
    pub fn head(&self, group: &[u8]) -> Option<Head> {
        let known = self.0.groups.peek(group)?;
        let reliable = known.doubt.is_none() && !known.moved && known.is_settled();
        reliable.then(|| known.head.clone())
    }

    /// Whether a look at the group and its sender may tell what is missing: not where looks have disappointed before.
    pub fn lacks(&self, group: &[u8], device: DeviceKey, user: Uuid) -> bool {
        let memory = &self.0;
        let caller = memory.callers.peek(&(device, user));
        let known = memory.groups.peek(group);
        let doubted = caller.is_some_and(|doubt| !doubt.is_none())
            || known.is_some_and(|known| !known.doubt.is_none() || !known.is_settled());
        let complete = caller.is_some()
            && known.is_some_and(|known| !known.moved && known.sender(device).is_some());
        memory.most > 0 && !doubted && !complete
    }

    /// The membership of a device that may call, in a group whose head can be relied on.
    pub fn sender(&mut self, group: &[u8], device: DeviceKey, user: Uuid) -> Option<Membership> {
        let doubt = self.0.callers.get(&(device, user))?;
        if !doubt.is_none() {
            return None;
        }
        self.0.groups.get(group)?.sender(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ordering::group::ExternalJoin;

    fn head(seq: u64) -> Head {
        Head {
            seq,
            ..Head::created(0, 1, ExternalJoin::Resync)
        }
    }

    fn learn(memory: &Remembered, group: &[u8], before: u64, after: u64) {
        let (before, after) = (head(before), head(after));
        let found = Found {
            group,
            before: &before,
            after: &after,
        };
        let membership = Membership {
            user: Uuid::nil(),
            joined_seq: 0,
            barred_seq: None,
        };
        let sender = Sender {
            group,
            device: device(),
            user: Uuid::nil(),
            membership,
            repeats: false,
        };
        memory.learn(&"".into(), [found].into_iter(), [sender].into_iter());
    }

    fn device() -> DeviceKey {
        DeviceKey {
            domain: 1,
            device: Uuid::nil(),
        }
    }

    fn relied_on(memory: &Remembered, group: &[u8]) -> bool {
        memory.open().head(group).is_some()
    }

    #[test]
    fn a_group_that_others_write_to_is_relied_on_more_and_more_seldom() {
        let memory = Remembered::new(10);
        learn(&memory, b"g", 0, 1);
        assert!(relied_on(&memory, b"g"));
        let mut seq = 1;
        let mut waits = Vec::new();
        for _ in 0..4 {
            // Somebody else was there, and nobody told.
            learn(&memory, b"g", seq + 1, seq + 2);
            seq += 2;
            let mut turns = 0;
            while !relied_on(&memory, b"g") {
                learn(&memory, b"g", seq, seq + 1);
                (seq, turns) = (seq + 1, turns + 1);
            }
            waits.push(turns);
            memory.disappointed([b"g".as_slice()].into_iter());
        }
        assert_eq!(waits, [1, 3, 3, 3], "eased again in between");
        for _ in 0..20 {
            memory.disappointed([b"g".as_slice()].into_iter());
        }
        for n in 0..u64::from(DEEPEST) {
            assert!(!relied_on(&memory, b"g"), "{n}");
            learn(&memory, b"g", seq, seq + 1);
            seq += 1;
        }
        assert!(relied_on(&memory, b"g"));
    }

    #[test]
    fn that_a_group_moved_is_no_disappointment_where_it_was_told() {
        let memory = Remembered::new(10);
        learn(&memory, b"g", 0, 1);
        memory.moved(b"g", 1);
        assert!(relied_on(&memory, b"g"), "it is known so far");
        memory.moved(b"g", 2);
        assert!(!relied_on(&memory, b"g"));
        assert!(memory.open().lacks(b"g", device(), Uuid::nil()));
        learn(&memory, b"g", 2, 2);
        assert!(relied_on(&memory, b"g"));
        assert!(!memory.open().lacks(b"g", device(), Uuid::nil()));
    }

    #[test]
    fn the_groups_used_last_are_kept() {
        let memory = Remembered::new(4);
        for group in [b"a", b"b", b"a", b"c"] {
            memory.open().sender(group, device(), Uuid::nil());
            learn(&memory, group, 0, 0);
        }
        assert_eq!(
            [b"a", b"b", b"c"].map(|group| relied_on(&memory, group)),
            [true, false, true]
        );
        let nothing = Remembered::new(0);
        learn(&nothing, b"a", 0, 0);
        assert!(!relied_on(&nothing, b"a"));
        assert!(!nothing.open().lacks(b"a", device(), Uuid::nil()));
    }

    #[test]
    fn what_was_said_of_devices_makes_every_caller_unknown() {
        let memory = Remembered::new(10);
        learn(&memory, b"g", 0, 0);
        let known = |memory: &Remembered| {
            let mut open = memory.open();
            open.sender(b"g", device(), Uuid::nil()).is_some()
        };
        assert!(known(&memory));
        memory.learn(&"1:ff:7".into(), [].into_iter(), [].into_iter());
        assert!(!known(&memory));
        assert!(memory.open().lacks(b"g", device(), Uuid::nil()));
    }
}
