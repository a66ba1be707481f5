//! A device without cryptography: the epoch that it is in, what it has under way, and what it does with answers and entries by the client's own machine.

use client_cli::core::{
    pending::{self, CommitStep, EntryStep, MessageStep, Told},
    records::Operation,
};

use super::{
    Broken,
    server::{Answer, Change, Entry, Request, Server, What},
};

/// Whether it has a state of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It has.
    Member,
    /// It lost it; only an external Commit helps.
    Lost,
    /// It was removed.
    Out,
}

/// A message of this device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Message {
    request: Request,
    /// Where the server said that it stands.
    accepted: Option<u64>,
    /// It was shown by the log.
    seen: bool,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Device {
    /// Which.
    pub number: u8,
    /// See [`Standing`].
    pub standing: Standing,
    /// The last entry read.
    pub head_seq: u64,
    chain: [u8; 32],
    epoch: u64,
    /// The epoch of its state.
    pub epoch_seq: u64,
    /// The epoch before, whose messages it still opens.
    past: Option<u64>,
    /// Nothing of an epoch before this one can be opened.
    since: u64,
    pending: Option<Request>,
    message: Option<Message>,
    /// Members that the log marked as revoked.
    marked: Vec<u8>,
    commits: u8,
    messages: u8,
    ids: u8,
    /// Races lost.
    pub races: u8,
    /// It read what it could not open, or may not read.
    wrong: Option<String>,
    broken: Option<Broken>,
}

impl Device {
    /// A member since the creation.
    pub fn new(number: u8, commits: u8, messages: u8, broken: Option<Broken>) -> Self {
        Self {
            number,
            standing: Standing::Member,
            head_seq: 0,
            chain: chancery_proto::chain::start(),
            epoch: 0,
            epoch_seq: 0,
            past: None,
            since: 0,
            pending: None,
            message: None,
            marked: Vec::new(),
            commits,
            messages,
            ids: number * 32,
            races: 0,
            wrong: None,
            broken,
        }
    }

    fn new_id(&mut self) -> u8 {
        self.ids += 1;
        self.ids
    }

    /// At most one Commit is under way.
    pub fn may_commit(&self) -> bool {
        self.pending.is_none() && self.commits > 0 && self.standing != Standing::Out
    }

    /// One message after the other.
    pub fn may_say(&self) -> bool {
        let busy = self.message.as_ref().is_some_and(|m| m.accepted.is_none());
        !busy && self.messages > 0 && self.standing == Standing::Member && self.marked.is_empty()
    }

    /// It has something to lose.
    pub fn may_forget(&self) -> bool {
        self.standing == Standing::Member && self.pending.is_none() && self.commits > 0
    }

    /// The state is gone, the key is not.
    pub fn forget(&mut self) {
        self.standing = Standing::Lost;
        self.message = self.message.take().filter(|m| m.accepted.is_some());
    }

    /// For the end: whatever it takes.
    pub fn refill(&mut self) {
        self.commits = self.commits.max(1);
    }

    /// Makes a Commit; the request.
    pub fn commit(&mut self, change: &Change, server: &Server) -> Option<Request> {
        self.commits -= 1;
        let id = self.new_id();
        let (mut epoch, mut epoch_seq) = (self.epoch, self.epoch_seq);
        let (mut seen_seq, mut seen_chain) = (self.head_seq, self.chain);
        let mut removes = self.marked.clone();
        match change {
            Change::Resync => {
                // On the GroupInfo and tree that the server gives, in one answer.
                (epoch, epoch_seq) = (server.head.epoch, server.head.epoch_seq);
                (seen_seq, seen_chain) = (server.head.seq, server.head.chain);
                removes.clear();
            }
            Change::Remove(n) if !removes.contains(n) => removes.push(*n),
            Change::Remove(_) | Change::Update => {}
        }
        let request = Request {
            by: self.number,
            id,
            epoch,
            epoch_seq,
            what: What::Commit {
                change: change.clone(),
                removes,
                seen_seq,
                seen_chain,
            },
        };
        self.pending = Some(request.clone());
        Some(request)
    }

    /// Says something; the request.
    pub fn say(&mut self) -> Option<Request> {
        self.messages -= 1;
        let id = self.new_id();
        let request = self.framed(id);
        self.message = Some(Message {
            request: request.clone(),
            accepted: None,
            seen: false,
        });
        Some(request)
    }

    fn framed(&self, id: u8) -> Request {
        Request {
            by: self.number,
            id,
            epoch: self.epoch,
            epoch_seq: self.epoch_seq,
            what: What::Say,
        }
    }

    /// The Commit that is under way.
    pub fn pending_request(&self) -> Option<Request> {
        self.pending.clone()
    }

    /// The message that is under way.
    pub fn unsent_request(&self) -> Option<Request> {
        let message = self.message.as_ref();
        let unsent = message.filter(|m| m.accepted.is_none() && !m.seen);
        unsent.map(|m| m.request.clone())
    }

    /// No answer will come.
    pub fn unanswered(&mut self, id: u8) {
        let pending = self.pending.as_ref().is_some_and(|p| p.id == id);
        if pending {
            match pending::commit_answered(self.operation(), Told::Nothing) {
                CommitStep::Keep if self.broken != Some(Broken::GivesUp) => {}
                _ => self.drop_pending(id),
            }
        }
    }

    /// An answer came. One about something that is not under way any more means nothing.
    pub fn answered(&mut self, answer: &Answer, server: &Server) {
        if self.pending.as_ref().is_some_and(|p| p.id == answer.id) {
            self.commit_answered(answer, server);
        }
        let current = |m: &&mut Message| {
            m.request.id == answer.id
                && m.request.epoch_seq == answer.epoch_seq
                && m.accepted.is_none()
        };
        if let Some(message) = self.message.as_mut().filter(current) {
            match pending::message_answered(answer.told()) {
                MessageStep::Keep => {}
                MessageStep::Done => message.accepted = answer.seq,
                MessageStep::Frame | MessageStep::Heed => self.frame_again(answer.id, server),
                MessageStep::Forget => self.message = None,
            }
        }
    }

    fn operation(&self) -> Operation {
        match self.pending.as_ref().map(|p| &p.what) {
            Some(What::Commit {
                change: Change::Resync,
                ..
            }) => Operation::External,
            _ => Operation::Commit,
        }
    }

    fn commit_answered(&mut self, answer: &Answer, server: &Server) {
        match pending::commit_answered(self.operation(), answer.told()) {
            CommitStep::Keep => {}
            CommitStep::TakeOver => {
                if self.broken == Some(Broken::MergesEarly)
                    && let Some(entry) = server.log.iter().find(|e| e.id == answer.id)
                {
                    self.merge(entry);
                }
                self.read_up(server);
            }
            CommitStep::GiveWay => {
                self.races = self.races.saturating_add(1);
                self.read_up(server);
                self.drop_pending(answer.id);
            }
            CommitStep::Heed => {
                self.drop_pending(answer.id);
                self.read_up(server);
            }
            CommitStep::Drop => {
                self.races = self.races.saturating_add(1);
                self.drop_pending(answer.id);
            }
        }
    }

    fn drop_pending(&mut self, id: u8) {
        self.pending = self.pending.take().filter(|pending| pending.id != id);
    }

    fn frame_again(&mut self, id: u8, server: &Server) {
        self.read_up(server);
        if self.standing != Standing::Member {
            self.message = None;
            return;
        }
        // The log may have shown it meanwhile.
        let request = self.framed(id);
        if let Some(message) = self.message.as_mut().filter(|m| !m.seen) {
            message.request = request;
        }
    }

    /// Reads to the end, or to what is wrong.
    pub fn read_up(&mut self, server: &Server) {
        while self.wrong.is_none() && server.next_for(self.number, self.head_seq).is_some() {
            self.read(server);
        }
    }

    /// Reads the next entry that the server gives.
    pub fn read(&mut self, server: &Server) {
        let Some(entry) = server.next_for(self.number, self.head_seq) else {
            return;
        };
        if entry.seq != self.head_seq + 1 {
            self.wrong = Some(format!("a hole before {entry:?}"));
        }
        if self.standing == Standing::Out {
            self.wrong = Some(format!("read after its removal: {entry:?}"));
        }
        self.head_seq = entry.seq;
        self.chain = entry.chain;
        if let Some(n) = entry.marks {
            self.marked.push(n);
        } else if entry.commit.is_some() {
            self.read_commit(entry);
        } else {
            self.read_message(entry);
        }
    }

    fn read_commit(&mut self, entry: &Entry) {
        let own = self.pending.as_ref().map(|pending| &pending.id);
        match pending::entry_came(own, &entry.id, true) {
            EntryStep::Merge => {
                if self.operation() == Operation::External {
                    self.standing = Standing::Member;
                    self.since = entry.seq;
                }
                self.pending = None;
                self.merge(entry);
            }
            EntryStep::Clear | EntryStep::Pass if self.standing == Standing::Lost => {
                // Nothing to merge it into; an external Commit under way is made anew when the server says so.
            }
            EntryStep::Clear | EntryStep::Pass if entry.by == self.number => {
                // Nobody can merge a Commit of its own without the keys that it dropped with it.
                self.wrong = Some(format!("its own Commit, dropped before: {entry:?}"));
            }
            EntryStep::Clear | EntryStep::Pass => {
                if entry.epoch_seq != self.epoch_seq {
                    self.wrong = Some(format!("a Commit of another epoch: {entry:?}"));
                }
                self.pending = None;
                self.merge(entry);
            }
        }
    }

    fn merge(&mut self, entry: &Entry) {
        let Some((_, removes)) = &entry.commit else {
            return;
        };
        self.past = Some(entry.epoch_seq);
        self.epoch = entry.epoch + 1;
        self.epoch_seq = entry.seq;
        self.marked.retain(|n| !removes.contains(n));
        if removes.contains(&self.number) {
            self.standing = Standing::Out;
        }
    }

    fn read_message(&mut self, entry: &Entry) {
        if entry.by == self.number {
            if let Some(message) = self.message.as_mut().filter(|m| m.request.id == entry.id) {
                message.seen = true;
                message.accepted.get_or_insert(entry.seq);
            }
            return;
        }
        let opens = entry.epoch_seq == self.epoch_seq || Some(entry.epoch_seq) == self.past;
        let mine = self.standing == Standing::Member && entry.epoch_seq >= self.since;
        if mine && !opens {
            self.wrong = Some(format!("cannot open {entry:?}"));
        }
    }

    /// What is wrong with its copy, if anything is.
    pub fn fault(&self, server: &Server) -> Option<String> {
        if let Some(wrong) = &self.wrong {
            return Some(format!("{}: {wrong}", self.number));
        }
        let ours = match self.head_seq {
            0 => chancery_proto::chain::start(),
            seq => server.log[usize::try_from(seq - 1).unwrap_or(0)].chain,
        };
        if ours != self.chain {
            return Some(format!("{}: another chain", self.number));
        }
        let message = self.message.as_ref()?;
        let seq = message.accepted?;
        (server.place_of(message.request.id) != Some(seq))
            .then(|| format!("{}: acknowledged and not there: {seq}", self.number))
    }
}
