//! What a listener was given of the journal. Whichever process read an entry, the listener gets it from the journal:
//! in order, once, nothing left out.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{Event, Sink, Stop};
use crate::{
    core::{
        consumers,
        records::{self, GroupName, GroupRecord, JournalEntry},
    },
    failure::Failure,
    member::Member,
};

/// Entries that are given before a named consumer's position is written.
const PAGE: usize = 32;

/// Where a listener begins in a group that this device knows already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Begin {
    /// After what this device has read so far.
    #[default]
    Here,
    /// With the first entry of the journal.
    Start,
    /// After this seq.
    After(u64),
}

/// What a listener follows.
#[derive(Debug, Clone, Default)]
pub struct Following {
    /// Only these groups; all, and new ones, when it is empty.
    pub groups: Vec<GroupName>,
    /// For a consumer without a name, and for one whose name is new.
    pub begin: Begin,
    /// The name under which the position is kept.
    pub consumer: Option<String>,
}

impl Following {
    pub(super) fn wants(&self, group: &GroupName) -> bool {
        self.groups.is_empty() || self.groups.contains(group)
    }
}

/// How far a listener is in each group.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) following: Following,
    given: BTreeMap<GroupName, u64>,
}

/// A page of one group's journal.
struct Next {
    entries: Vec<JournalEntry>,
    head_seq: u64,
    joined_seq: u64,
}

impl Follower {
    /// Begins where the consumer ended, or where `following` says.
    pub(super) fn begin(member: &Member, following: &Following) -> Result<Self, Failure> {
        let given = member.step(|step, _| {
            let records = records::groups(step)?;
            let mut given = BTreeMap::new();
            let known = match &following.consumer {
                Some(name) => consumers::exists(step, name)?,
                None => false,
            };
            for record in records {
                let seq = match (&following.consumer, following.begin) {
                    (Some(name), _) if known => consumers::position(step, name, &record.name)?,
                    (_, Begin::Start) => 0,
                    (_, Begin::After(seq)) if following.wants(&record.name) => seq,
                    (_, Begin::After(_) | Begin::Here) => record.head_seq,
                };
                if let Some(name) = &following.consumer {
                    consumers::advance(step, name, &record.name, seq)?;
                }
                given.insert(record.name, seq);
            }
            if let Some(name) = &following.consumer {
                consumers::create(step, name)?;
            }
            Ok(given)
        })?;
        Ok(Self {
            following: following.clone(),
            given,
        })
    }

    /// Whether the listener has heard of a group.
    pub(super) fn knows(&self, group: &GroupName) -> bool {
        self.given.contains_key(group)
    }

    /// Gives whatever the journal holds beyond what was given.
    pub(super) fn give(
        &mut self,
        member: &Member,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<Stop>, Failure> {
        let records = member.step(|step, _| Ok(records::groups(step)?))?;
        for record in records {
            if !self.following.wants(&record.name) {
                continue;
            }
            if let stopped @ ControlFlow::Break(_) = self.give_group(member, &record, sink)? {
                return Ok(stopped);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The same for one group, which may be one that this device does not know.
    pub(super) fn give_in(
        &mut self,
        member: &Member,
        name: &GroupName,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<Stop>, Failure> {
        let record = member.step(|step, _| Ok(records::group(step, name)?))?;
        match record {
            Some(record) if self.following.wants(name) => self.give_group(member, &record, sink),
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    fn give_group(
        &mut self,
        member: &Member,
        record: &GroupRecord,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<Stop>, Failure> {
        let name = &record.name;
        if !self.knows(name) {
            let stored = match &self.following.consumer {
                Some(consumer) => {
                    member.step(|step, _| Ok(consumers::position(step, consumer, name)?))?
                }
                None => 0,
            };
            self.given.insert(name.clone(), stored);
            // A group that this device made itself was joined by nobody.
            if record.joined_seq > 0
                && let stopped @ ControlFlow::Break(_) = sink(Event::Joined(name.clone()))
            {
                return Ok(stopped);
            }
        }
        // A quiet stream looks at every group each second: most of them have nothing new, and the record says so.
        let mut head_seq = record.head_seq;
        loop {
            let before = self.given.get(name).copied().unwrap_or(0);
            if before >= head_seq {
                return Ok(ControlFlow::Continue(()));
            }
            let next = self.next(member, name, before)?;
            let (given, stopped) = give_page(name, before, &next, sink);
            if given > before {
                self.given.insert(name.clone(), given);
                if let Some(consumer) = &self.following.consumer {
                    member.step(|step, _| Ok(consumers::advance(step, consumer, name, given)?))?;
                }
            }
            if stopped.is_break() {
                return Ok(stopped);
            }
            head_seq = next.head_seq;
        }
    }

    fn next(&self, member: &Member, name: &GroupName, after: u64) -> Result<Next, Failure> {
        member.step(|step, _| {
            let record = records::known(step, name)?;
            Ok(Next {
                entries: records::entries(step, name, after, PAGE)?,
                head_seq: record.head_seq,
                joined_seq: record.joined_seq,
            })
        })
    }
}

/// Gives a page, and says what is missing in it; the last seq that was given, and whether the sink wants more.
fn give_page(
    name: &GroupName,
    before: u64,
    next: &Next,
    sink: Sink<'_>,
) -> (u64, ControlFlow<Stop>) {
    let mut given = before;
    for entry in &next.entries {
        let stopped = match missing(name, given.max(next.joined_seq) + 1, entry.seq, sink) {
            ControlFlow::Continue(()) => sink(Event::Entry(name.clone(), Box::new(entry.clone()))),
            stopped => return (given, stopped),
        };
        match stopped {
            ControlFlow::Continue(()) => given = entry.seq,
            ControlFlow::Break(Stop::Seen) => return (entry.seq, stopped),
            ControlFlow::Break(Stop::NotTaken(_)) => return (given, stopped),
        }
    }
    if next.entries.len() < PAGE && given < next.head_seq {
        let from_seq = given.max(next.joined_seq) + 1;
        let stopped = missing(name, from_seq, next.head_seq + 1, sink);
        if !matches!(stopped, ControlFlow::Break(Stop::NotTaken(_))) {
            given = next.head_seq;
        }
        return (given, stopped);
    }
    (given, ControlFlow::Continue(()))
}

/// Says that the entries from `from_seq` and before `seq` are missing, where there are any.
fn missing(name: &GroupName, from_seq: u64, seq: u64, sink: Sink<'_>) -> ControlFlow<Stop> {
    if from_seq >= seq {
        return ControlFlow::Continue(());
    }
    sink(Event::Missing {
        group: name.clone(),
        from_seq,
        to_seq: seq - 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> JournalEntry {
        JournalEntry {
            seq,
            ..JournalEntry::default()
        }
    }

    #[test]
    fn holes_in_the_journal_are_said_and_nothing_is_given_twice() {
        let name = GroupName {
            domain: "a.example".into(),
            id: vec![1; 16],
        };
        /// Where it begins, where the device joined, the journal, its head; what is given, holes as pairs.
        type Row<'r> = (u64, u64, &'r [u64], u64, &'r [(u64, u64)], u64);
        let table: [Row<'_>; 7] = [
            (0, 0, &[1, 2, 3], 3, &[(1, 1), (2, 2), (3, 3)], 3),
            (2, 0, &[3], 3, &[(3, 3)], 3),
            // It joined by the Commit at 7: what was before was never its own.
            (0, 7, &[8, 9], 9, &[(8, 8), (9, 9)], 9),
            (0, 7, &[], 7, &[], 7),
            // Past retention: in the middle, and up to the head.
            (1, 0, &[2, 6], 6, &[(2, 2), (3, 5), (6, 6)], 6),
            (4, 0, &[], 9, &[(5, 9)], 9),
            // Between two memberships, 3 to 5 and from 20.
            (3, 20, &[4, 5, 21], 21, &[(4, 4), (5, 5), (21, 21)], 21),
        ];
        for (before, joined_seq, journal, head_seq, expected, last) in table {
            let next = Next {
                entries: journal.iter().map(|seq| entry(*seq)).collect(),
                head_seq,
                joined_seq,
            };
            let mut seen = Vec::new();
            let mut sink = |event: Event| {
                seen.push(match event {
                    Event::Entry(_, entry) => (entry.seq, entry.seq),
                    Event::Missing {
                        from_seq, to_seq, ..
                    } => (from_seq, to_seq),
                    other => panic!("{other:?}"),
                });
                ControlFlow::Continue(())
            };
            let (given, _) = give_page(&name, before, &next, &mut sink);
            assert_eq!((seen.as_slice(), given), (expected, last), "from {before}");
        }
    }

    #[test]
    fn what_was_not_taken_does_not_count_as_given() {
        let name = GroupName {
            domain: "a.example".into(),
            id: vec![1; 16],
        };
        let next = Next {
            entries: vec![entry(1), entry(2)],
            head_seq: 2,
            joined_seq: 0,
        };
        let full = || ControlFlow::Break(Stop::NotTaken(std::io::ErrorKind::StorageFull.into()));
        for (second, expected) in [(full(), 1), (ControlFlow::Break(Stop::Seen), 2)] {
            let mut answers = vec![second, ControlFlow::Continue(())];
            let mut sink = |_: Event| answers.pop().expect("two events");
            assert_eq!(give_page(&name, 0, &next, &mut sink).0, expected);
        }
    }
}
