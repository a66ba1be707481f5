//! Which messages of a batch can be written without asking first: those of groups of which everything is remembered that the decisions need, where each of
//! them would be accepted. A refusal is never foreseen: it needs what is true now, and so does the answer to a repeat.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use uuid::Uuid;

use crate::{
    hub::head_cache::{Open, Remembered},
    log::{batch::Message, message::command},
    ordering::group::{Decision, Group, Head, Membership},
};

/// What the decisions on the foreseen messages rest on.
#[derive(Debug)]
pub(super) struct Foresight {
    /// Of their groups.
    pub(super) heads: BTreeMap<Vec<u8>, Head>,
    /// By foreseen message.
    pub(super) memberships: Vec<Membership>,
    /// How far the status feeds were applied when the senders were looked up.
    pub(super) feeds: Arc<str>,
    /// The database's time as this node believes it to be, Unix microseconds.
    pub(super) now: i64,
}

/// For each message whether it is foreseen; nothing where none is. All messages of a group are, or none.
pub(super) fn foresee<'m>(
    messages: impl Iterator<Item = &'m Message> + Clone,
    remembered: &Remembered,
    now: i64,
) -> Option<(Vec<bool>, Foresight)> {
    let mut memory = remembered.open();
    let feeds = memory.feeds()?;
    let mut trials: HashMap<&[u8], Option<Trial>> = HashMap::new();
    for message in messages.clone() {
        let group = message.send.group.as_slice();
        let trial = trials
            .entry(group)
            .or_insert_with(|| memory.head(group).map(Trial::new));
        let goes_on = trial
            .as_mut()
            .is_some_and(|trial| trial.take(&mut memory, message, now).is_some());
        if !goes_on {
            *trial = None;
        }
    }
    drop(memory);
    let mut trials: HashMap<&[u8], Trial> = trials
        .into_iter()
        .filter_map(|(group, trial)| Some((group, trial?)))
        .collect();
    if trials.is_empty() {
        return None;
    }
    let (mut foreseen, mut memberships) = (Vec::new(), Vec::new());
    for message in messages {
        let trial = trials.get_mut(message.send.group.as_slice());
        let membership = trial.and_then(|trial| trial.memberships.pop_front());
        foreseen.push(membership.is_some());
        memberships.extend(membership);
    }
    let heads = trials.into_iter();
    let foresight = Foresight {
        heads: heads.map(|(group, t)| (group.to_vec(), t.before)).collect(),
        memberships,
        feeds,
        now,
    };
    Some((foreseen, foresight))
}

/// A group as it was remembered, and as it is after the messages so far.
struct Trial {
    before: Head,
    now: Head,
    ids: HashSet<Uuid>,
    memberships: VecDeque<Membership>,
}

impl Trial {
    fn new(head: Head) -> Self {
        Self {
            before: head.clone(),
            now: head,
            ids: HashSet::new(),
            memberships: VecDeque::new(),
        }
    }

    /// Nothing if the message may not be accepted.
    fn take(&mut self, memory: &mut Open<'_>, message: &Message, now: i64) -> Option<()> {
        let send = &message.send;
        let membership = memory.sender(&send.group, message.sender, message.user)?;
        let current = send.epoch_seq == self.now.epoch_seq;
        if !current || !self.ids.insert(send.message_id) {
            return None;
        }
        let group = Group {
            head: self.now.clone(),
            caller: Some(membership),
            caller_revoked: false,
            prior: None,
        };
        let named = (Some(self.now.epoch), None);
        match group.decide(&command(message.sender, send, named), now) {
            Ok(Decision::Append(append)) => {
                self.now = Head {
                    last_at: append.accepted_at,
                    ..append.head
                };
                self.memberships.push_back(membership);
                Some(())
            }
            Ok(Decision::Replay(_)) | Err(_) => None,
        }
    }
}
