//! Servers that are broken on purpose, one for each guarantee: a checker that has never failed proves nothing.
//!
//! A double is the real server with false hands: between it and PostgreSQL, statements are replaced by ones that do not do what the server relies on.
//! So the server holds no code for it, and what is tried is the very program that is shipped. Statements are found by the name in their comment;
//! a double whose substitutions were never made has proven nothing, and [`Double::unused`] says so.
//!
//! Most guarantees have a second line of defence in the schema (unique indexes). A double loses that too: with it, a broken server only refuses.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum;
use tokio::sync::Notify;

use super::faults::Kind;

/// How long before its COMMIT the early one answers.
pub const EARLY: Duration = Duration::from_millis(200);

/// Which guarantee is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Broken {
    /// A repeat is not recognised.
    ForgetsIdempotency,
    /// The head is read and written without its lock.
    SkipsTheRowLock,
    /// What is remembered of a head is believed: it is written without a look whether it is still so.
    TrustsItsMemory,
    /// The head is locked and the rest is read in one statement: what was written while the lock was awaited is not seen.
    LocksAndReadsAtOnce,
    /// An answer is given before COMMIT.
    AcknowledgesEarly,
    /// A stream that wakes up leaves a row out.
    SkipsARow,
    /// A claimed KeyPackage stays for sale.
    SellsTwice,
}

struct Rule {
    /// As in the statement's comment.
    statement: &'static str,
    find: &'static str,
    put: &'static str,
}

const fn rule(statement: &'static str, find: &'static str, put: &'static str) -> Rule {
    Rule {
        statement,
        find,
        put,
    }
}

impl Broken {
    fn rules(self) -> &'static [Rule] {
        const FORGETS: &[Rule] = &[
            rule(
                "log::prior",
                "l.message_id = $2",
                "l.message_id = $2 AND false",
            ),
            rule(
                "log::priors",
                "l.message_id = q.message_id",
                "l.message_id = q.message_id AND false",
            ),
        ];
        const TRUSTS: Rule = rule(
            "log::append_many",
            "AND h.head_seq = n.before_seq AND h.chain = n.before_chain AND h.settled_seq = n.before_settled",
            "",
        );
        const SKIPS_LOCK: &[Rule] = &[
            rule("groups::lock", " FOR NO KEY UPDATE", ""),
            rule(
                "groups::advance",
                "AND head_seq = $2",
                "AND $2::bigint IS NOT NULL",
            ),
            rule("groups::lock_many", " FOR NO KEY UPDATE) h", ") h"),
            TRUSTS,
        ];
        // The subquery sees what the statement's snapshot saw, which is older than the lock.
        const AT_ONCE: &[Rule] = &[
            rule(
                "groups::lock",
                "SELECT ",
                "SELECT set_config('double.seen', (SELECT coalesce(max(seq), 0)::text FROM log WHERE group_id = $1), true) AS seen, ",
            ),
            rule(
                "log::prior",
                "l.message_id = $2",
                "l.message_id = $2 AND l.seq <= current_setting('double.seen')::bigint",
            ),
            rule(
                "groups::lock_many",
                "SELECT ",
                "SELECT set_config('double.seen', (SELECT coalesce(json_object_agg(encode(s.group_id, 'hex'), s.seq), '{}'::json)::text \
                 FROM (SELECT group_id, max(seq) AS seq FROM log WHERE group_id = ANY($1) GROUP BY group_id) s), true) AS seen, ",
            ),
            rule(
                "log::priors",
                "l.message_id = q.message_id",
                "l.message_id = q.message_id AND l.seq <= (current_setting('double.seen')::json ->> encode(l.group_id, 'hex'))::bigint",
            ),
            // On a slow disk a lock is held long enough for a repeat to come and wait for it.
            rule(
                "log::append_many",
                "WHERE (SELECT assume(",
                "WHERE (SELECT count(*) FROM pg_sleep(0.25)) = 1 AND (SELECT assume(",
            ),
        ];
        const SKIPS_ROW: &[Rule] = &[
            rule(
                "log::read_after",
                "l.seq <= $3",
                "l.seq <= $3 AND NOT (l.seq = $2 + 2 AND $3 > $2 + 2 AND random() < 0.5)",
            ),
            rule(
                "log::read_many",
                "l.seq > q.after",
                "l.seq > q.after AND NOT (l.seq = q.after + 2 AND random() < 0.5)",
            ),
        ];
        // `key_packages::mark_claimed` stays whole: only what others hold is given so, which need not come up.
        const SELLS: &[Rule] = &[rule(
            "claims::give_many",
            "SET claim_id = $4, claimed_at = now()",
            "SET claimed_at = CASE WHEN $4::uuid IS NULL THEN now() END",
        )];
        match self {
            Self::ForgetsIdempotency => FORGETS,
            Self::SkipsTheRowLock => SKIPS_LOCK,
            Self::TrustsItsMemory => &[TRUSTS],
            Self::LocksAndReadsAtOnce => AT_ONCE,
            Self::AcknowledgesEarly => &[],
            Self::SkipsARow => SKIPS_ROW,
            Self::SellsTwice => SELLS,
        }
    }

    /// The faults that bring it to light.
    pub fn mix(self) -> &'static [(Kind, u32)] {
        match self {
            Self::ForgetsIdempotency => &[(Kind::LoseAnswers, 3), (Kind::LoseCommits, 1)],
            // Two repeats of one request, one of them slow: both under way at once.
            Self::LocksAndReadsAtOnce => &[(Kind::DelayDatabase, 1), (Kind::LoseAnswers, 4)],
            Self::AcknowledgesEarly => &[(Kind::KillNode, 3), (Kind::KillBackend, 1)],
            Self::SkipsTheRowLock | Self::TrustsItsMemory | Self::SkipsARow | Self::SellsTwice => {
                &[(Kind::KillClient, 1), (Kind::CutAnswers, 1)]
            }
        }
    }

    /// Options of a node. A server that locks and looks, and does it wrongly, has to lock and look: it remembers nothing.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::ForgetsIdempotency | Self::SkipsTheRowLock | Self::LocksAndReadsAtOnce => {
                &["--append-remembered-items", "0"]
            }
            Self::TrustsItsMemory
            | Self::AcknowledgesEarly
            | Self::SkipsARow
            | Self::SellsTwice => &[],
        }
    }

    /// What takes the second line of defence from the schema.
    fn disarm(self) -> &'static str {
        match self {
            Self::ForgetsIdempotency | Self::LocksAndReadsAtOnce => {
                "DROP INDEX log_message_id; CREATE INDEX log_message_id ON log (group_id, message_id)"
            }
            Self::SkipsTheRowLock | Self::TrustsItsMemory => {
                "ALTER TABLE log DROP CONSTRAINT log_pkey; CREATE INDEX log_place ON log (group_id, seq); \
                 DROP INDEX epochs_one_commit; ALTER TABLE epochs DROP CONSTRAINT epochs_pkey; \
                 CREATE INDEX epochs_place ON epochs (group_id, epoch_seq); DROP INDEX members_now; \
                 ALTER TABLE members DROP CONSTRAINT members_pkey; CREATE INDEX members_place ON members (group_id, device_id); \
                 ALTER TABLE tree_nodes DROP CONSTRAINT tree_nodes_pkey; CREATE INDEX tree_place ON tree_nodes (group_id, node_index); \
                 ALTER TABLE welcomes DROP CONSTRAINT welcomes_pkey"
            }
            Self::AcknowledgesEarly | Self::SkipsARow | Self::SellsTwice => "",
        }
    }
}

/// The false hands, and what they did.
#[derive(Debug)]
pub struct Double {
    broken: Broken,
    /// Not before everybody is at their places.
    armed: AtomicBool,
    /// Rung when it is armed.
    arming: Notify,
    /// Substitutions by rule, or early answers.
    made: Vec<AtomicU64>,
}

impl Double {
    /// Hands for one broken guarantee.
    pub fn new(broken: Broken) -> Arc<Self> {
        let made = broken.rules().len().max(1);
        Arc::new(Self {
            broken,
            armed: AtomicBool::new(false),
            arming: Notify::new(),
            made: (0..made).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// SQL that takes the second line of defence from the schema.
    pub fn disarm(&self) -> &'static str {
        self.broken.disarm()
    }

    /// Options of a node.
    pub fn options(&self) -> &'static [&'static str] {
        self.broken.options()
    }

    /// From now on it is broken.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        self.arming.notify_waiters();
    }

    /// Waits for the arming; for ever where that is over. A connection from before must end then: its statements are prepared, and unbroken.
    pub async fn arming(&self) {
        let arming = self.arming.notified();
        if self.is_armed() {
            std::future::pending::<()>().await;
        }
        arming.await;
    }

    fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    /// Statements that were never met, or no longer read as the substitution expects.
    pub fn unused(&self) -> Vec<&'static str> {
        let names: Vec<_> = match self.broken.rules() {
            [] => vec!["COMMIT"],
            rules => rules.iter().map(|rule| rule.statement).collect(),
        };
        let made = self.made.iter().zip(names);
        made.filter(|(made, _)| made.load(Ordering::Relaxed) == 0)
            .map(|(_, name)| name)
            .collect()
    }

    fn count(&self, index: usize) {
        if let Some(made) = self.made.get(index) {
            made.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rewrite(&self, sql: &str) -> Option<String> {
        let rules = self.broken.rules().iter().enumerate();
        for (index, rule) in rules {
            if sql.starts_with(&format!("/* {} */", rule.statement)) && sql.contains(rule.find) {
                self.count(index);
                return Some(sql.replacen(rule.find, rule.put, 1));
            }
        }
        None
    }
}

/// What goes on to PostgreSQL.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it is.
    Bytes(Vec<u8>),
    /// A COMMIT that is answered now and carried out later.
    EarlyCommit {
        /// The message.
        bytes: Vec<u8>,
        /// Which answer it would get.
        number: u64,
    },
}

impl Piece {
    /// What PostgreSQL is to get.
    pub fn bytes(&self) -> &[u8] {
        let (Self::Bytes(bytes) | Self::EarlyCommit { bytes, .. }) = self;
        bytes
    }
}

/// Reads what a client sends to PostgreSQL (its frontend/backend protocol, version 3) and puts other statements in place of some.
#[derive(Debug)]
pub struct Rewriter {
    double: Arc<Double>,
    buffer: Vec<u8>,
    /// What will be answered: the start-up, whose message has no type, each `Sync`, each simple query.
    asked: u64,
}

impl Rewriter {
    /// For one connection.
    pub fn new(double: Arc<Double>) -> Self {
        Self {
            double,
            buffer: Vec::new(),
            asked: 0,
        }
    }

    /// Takes what came; gives what is whole.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<Piece> {
        self.buffer.extend_from_slice(piece);
        let mut pieces = Vec::new();
        while let Some(message) = take_message(&mut self.buffer, self.asked > 0) {
            let number = self.asked;
            let asks = number == 0 || matches!(message.first(), Some(b'S' | b'Q'));
            self.asked += u64::from(asks);
            pieces.push(self.message(message, number));
        }
        pieces
    }

    fn message(&self, message: Vec<u8>, number: u64) -> Piece {
        match message.first().filter(|_| self.double.is_armed()) {
            Some(b'Q')
                if self.double.broken == Broken::AcknowledgesEarly
                    && message.get(5..) == Some(b"COMMIT\0") =>
            {
                self.double.count(0);
                Piece::EarlyCommit {
                    bytes: message,
                    number,
                }
            }
            Some(b'P') => Piece::Bytes(self.parse(&message).unwrap_or(message)),
            _ => Piece::Bytes(message),
        }
    }

    /// `Parse`: the name, the statement, the types of its parameters.
    fn parse(&self, message: &[u8]) -> Option<Vec<u8>> {
        let body = message.get(5..)?;
        let name_end = body.iter().position(|b| *b == 0)? + 1;
        let (name, rest) = body.split_at(name_end);
        let sql_end = rest.iter().position(|b| *b == 0)?;
        let (sql, rest) = rest.split_at(sql_end);
        let sql = self.double.rewrite(std::str::from_utf8(sql).ok()?)?;
        let length = u32::try_from(4 + name.len() + sql.len() + rest.len()).ok()?;
        let mut changed = vec![b'P'];
        changed.extend(length.to_be_bytes());
        changed.extend_from_slice(name);
        changed.extend_from_slice(sql.as_bytes());
        changed.extend_from_slice(rest);
        Some(changed)
    }
}

/// The first message of a buffer, if it is whole.
fn take_message(buffer: &mut Vec<u8>, typed: bool) -> Option<Vec<u8>> {
    let kind = usize::from(typed);
    let length: [u8; 4] = buffer.get(kind..kind + 4)?.try_into().ok()?;
    let whole = kind + usize::try_from(u32::from_be_bytes(length)).ok()?.max(4);
    if buffer.len() < whole {
        return None;
    }
    let rest = buffer.split_off(whole);
    Some(std::mem::replace(buffer, rest))
}

/// Reads what PostgreSQL answers, and keeps back the answer to a COMMIT that was answered before.
#[derive(Debug, Default)]
pub struct Swallower {
    answers: Mutex<Answers>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct Answers {
    buffer: Vec<u8>,
    /// Answers that ended; the first is that to the start-up.
    ended: u64,
    /// The one that is for nobody.
    unwanted: Option<u64>,
}

impl Swallower {
    /// The answer with this number is for nobody.
    pub fn drop_answer(&self, number: u64) {
        self.held().unwanted = Some(number);
    }

    /// Waits until so many answers have ended.
    pub async fn ended(&self, answers: u64) {
        loop {
            let moved = self.moved.notified();
            if self.held().ended >= answers {
                return;
            }
            moved.await;
        }
    }

    fn held(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what came from PostgreSQL; gives what is to go on.
    pub fn feed(&self, piece: &[u8]) -> Vec<u8> {
        let mut answers = self.held();
        answers.buffer.extend_from_slice(piece);
        let mut on = Vec::new();
        while let Some(message) = take_message(&mut answers.buffer, true) {
            if answers.unwanted != Some(answers.ended) {
                on.extend_from_slice(&message);
            }
            if message.first() == Some(&b'Z') {
                answers.ended += 1;
                self.moved.notify_waiters();
            }
        }
        on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTUP: &[u8] = &[0, 0, 0, 8, 0, 3, 0, 0];

    fn parse(sql: &str) -> Vec<u8> {
        let mut message = vec![b'P'];
        message.extend(
            u32::try_from(4 + 2 + sql.len() + 1 + 2)
                .unwrap()
                .to_be_bytes(),
        );
        message.extend(b"s\0");
        message.extend(sql.as_bytes());
        message.extend([0, 0, 0]);
        message
    }

    #[test]
    fn a_statement_is_replaced_however_it_is_cut() {
        let sent = [
            STARTUP,
            &parse("/* groups::lock */ SELECT 1 FOR NO KEY UPDATE"),
            &parse("/* groups::head */ SELECT 1 FOR NO KEY UPDATE"),
        ]
        .concat();
        let wanted = [
            STARTUP,
            &parse("/* groups::lock */ SELECT 1"),
            &parse("/* groups::head */ SELECT 1 FOR NO KEY UPDATE"),
        ]
        .concat();
        for size in 1..sent.len() {
            let double = Double::new(Broken::SkipsTheRowLock);
            double.arm();
            let mut rewriter = Rewriter::new(double.clone());
            let got: Vec<u8> = sent
                .chunks(size)
                .flat_map(|piece| rewriter.feed(piece))
                .flat_map(|piece| piece.bytes().to_vec())
                .collect();
            assert_eq!(got, wanted);
            let never_met = ["groups::advance", "groups::lock_many", "log::append_many"];
            assert_eq!(double.unused(), never_met);
        }
    }

    #[test]
    fn an_early_commit_is_told_from_the_rest_and_its_answer_kept_back() {
        let double = Double::new(Broken::AcknowledgesEarly);
        double.arm();
        let mut rewriter = Rewriter::new(double.clone());
        assert_eq!(double.unused(), ["COMMIT"]);
        let sent = [STARTUP, b"Q\0\0\0\x0bCOMMIT\0"].concat();
        let pieces = rewriter.feed(&sent);
        assert!(matches!(pieces[1], Piece::EarlyCommit { number: 1, .. }));
        let swallower = Swallower::default();
        let ready = b"Z\0\0\0\x05I";
        assert_eq!(swallower.feed(ready), ready, "to the start-up");
        swallower.drop_answer(1);
        assert_eq!(swallower.feed(b"C\0\0\0\x0bCOM"), b"");
        assert_eq!(
            swallower.feed(&[b"MIT\0", &ready[..], ready].concat()),
            ready
        );
        assert_eq!(swallower.feed(ready), ready);
    }
}
