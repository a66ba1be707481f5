//! Schema and statements can be spread over a distributed PostgreSQL (Citus and its like): by group, by device, and small tables everywhere.
//!
//! What is checked is what a change breaks unnoticed: a key without the distribution column, a statement that does not say whose rows it wants.
//! It is no proof that Citus takes each statement: nobody has run it there, and `docs/scaling.md` lists what its planner refuses.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use delivery_service::MIGRATIONS;
use service_kit::test_db::TestDb;
use tokio_postgres::{Client, NoTls};

/// Distributed by `group_id`: what a group is made of is on one shard.
const BY_GROUP: &str = "asked epoch_reports epochs group_heads groups log members tree_hashes tree_nodes voids welcomes";
/// Distributed by `device_id`.
const BY_DEVICE: &str = "device_groups devices key_package_claims key_packages";
/// Reference tables, copied to every node. `revoked_devices` is joined with the members of groups, and `suspended` holds users and devices: neither could
/// be looked up on the shard of one device. The last two are the migrations' own.
const EVERYWHERE: &str = "auth_roots auth_services domains revoked_devices service_state suspended unknown_statuses refinery_schema_history schema_compat";

/// What a message, and reading it, is made of. Batches name several groups in one statement (`unnest` of groups). On a distributed database that is a
/// statement over several shards in one transaction, with a two-phase COMMIT; so committers are to be assigned by shard, and a batch stays on one.
const MESSAGE_PATH: &str = "\
    groups::lock_many roster::memberships devices::standings devices::nothing_said log::priors log::append_many epochs::forget_committers epochs::find recovery::voided_by \
    groups::lock groups::now log::prior roster::at roster::current devices::find log::append groups::advance \
    groups::head groups::places groups::pulses roster::pulses roster::readings roster::left_after \
    log::read_after log::read_many log::chain_at log::payload retention::pruned_to";

/// Statements of the message path that look at devices: each reads rows by device, on other shards, and writes none.
const DEVICES_ON_THE_PATH: &str = "
    devices::standings: a revoked sender is refused at once
    devices::find: the same, for the message that comes with a Commit
    roster::readings: a revoked reader gets nothing
    roster::pulses: the poll of many devices' own lists";

/// Statements that leave open which group they mean. None is on the message path.
const ALL_SHARDS: &str = "
    recovery::due: a job, epochs to be looked at by time
    retention::delete_expired: a job, what is over by time
    retention::empty: a job, old payloads by time
    retention::with_old_entries: a job, groups with old entries by time
    revocations::apply_marked: a job, from devices to their groups
    revocations::unmarked_groups: a job, from devices to their groups
    welcomes::unread: a device's inbox, when a subscription begins and when its groups change";

/// Statements that name tables of both families, whose rows are on different shards.
const BOTH_FAMILIES: &str = "
    recovery::restore: a VOID entry, seldom
    revocations::apply_marked: a job
    revocations::unmarked_groups: a job
    roster::readings: two questions, neither needs the other's answer";

/// Sequences, identity columns and triggers: what a row gets must not depend on the node that it is written on.
const ODDITIES: &str = "SELECT 'sequence ' || relname FROM pg_class WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace \
    UNION ALL SELECT 'identity ' || c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
    WHERE a.attidentity <> '' AND c.relnamespace = 'public'::regnamespace \
    UNION ALL SELECT 'trigger ' || t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
    WHERE NOT t.tgisinternal AND c.relnamespace = 'public'::regnamespace";

/// Each unique index with its table and its key columns; an expression is an empty name, an INCLUDEd column is none.
const UNIQUE: &str = "SELECT t.relname::text, i.relname::text, array_agg(coalesce(a.attname::text, '')) FROM pg_index x \
    JOIN pg_class t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid \
    CROSS JOIN LATERAL unnest(x.indkey::int2[]) WITH ORDINALITY AS k(attnum, n) \
    LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum \
    WHERE x.indisunique AND t.relnamespace = 'public'::regnamespace AND k.n <= x.indnkeyatts GROUP BY 1, 2";

/// The column that a table is distributed by.
fn distributed_by(table: &str) -> Option<&'static str> {
    let families = [BY_GROUP, BY_DEVICE, EVERYWHERE].map(|family| among(family, table));
    match families {
        [true, false, false] => Some("group_id"),
        [false, true, false] => Some("device_id"),
        [false, false, true] => None,
        _ => panic!("{table} must be in one family"),
    }
}

fn among(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|item| item == name)
}

async fn schema() -> (TestDb, Client) {
    let db = TestDb::create(&MIGRATIONS).await;
    let connected = tokio_postgres::connect(&db.owner_url(), NoTls).await;
    let (client, connection) = connected.unwrap();
    service_kit::lifecycle::spawn_short(connection);
    (db, client)
}

#[tokio::test]
async fn every_table_is_of_one_family() {
    let (_db, client) = schema().await;
    let sql = "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace";
    let rows = client.query(sql, &[]).await.unwrap();
    let tables: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    for table in &tables {
        distributed_by(table);
    }
    let listed = [BY_GROUP, BY_DEVICE, EVERYWHERE].map(|family| family.split(' ').count());
    assert_eq!(
        tables.len(),
        listed.iter().sum::<usize>(),
        "a listed table is gone"
    );
}

#[tokio::test]
async fn every_unique_key_holds_the_distribution_column() {
    let (_db, client) = schema().await;
    let mut keyed = BTreeSet::new();
    for row in client.query(UNIQUE, &[]).await.unwrap() {
        let (table, index): (String, String) = (row.get(0), row.get(1));
        let columns: Vec<String> = row.get(2);
        if let Some(column) = distributed_by(&table) {
            let holds = columns.iter().any(|name| name == column);
            assert!(holds, "{index} of {table} does not hold {column}");
        }
        keyed.insert(table);
    }
    for table in BY_GROUP.split(' ').chain(BY_DEVICE.split(' ')) {
        assert!(keyed.contains(table), "{table} has no key");
    }
}

#[tokio::test]
async fn nothing_ties_shards_together() {
    let (_db, client) = schema().await;
    let rows = client.query(ODDITIES, &[]).await.unwrap();
    let odd: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    let sql = "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'";
    for row in client.query(sql, &[]).await.unwrap() {
        let (from, to): (String, String) = (row.get(0), row.get(1));
        let by = distributed_by(&from);
        assert!(
            by.is_none() || by == distributed_by(&to),
            "{from} refers to {to}"
        );
    }
}

#[test]
fn every_statement_names_its_group() {
    let found = store();
    // A statement that was not read whole would look as if it touched nothing.
    let touch = |s: &&Statement| [BY_GROUP, BY_DEVICE, EVERYWHERE].map(|f| touches(&s.sql, f));
    let nothing = found.iter().filter(|s| touch(s) == [false; 3]);
    assert_eq!(names(nothing), BTreeSet::from(["groups::now"]));
    let open = found.iter().filter(|s| !open_tables(&s.sql).is_empty());
    assert_eq!(names(open), listed(ALL_SHARDS));
    let both = |s: &&Statement| touches(&s.sql, BY_GROUP) && touches(&s.sql, BY_DEVICE);
    assert_eq!(names(found.iter().filter(both)), listed(BOTH_FAMILIES));
}

#[test]
fn the_message_path_is_on_the_shard_of_its_group() {
    let found = store();
    let path = found.iter().filter(|s| among(MESSAGE_PATH, &s.name));
    let expected: BTreeSet<&str> = MESSAGE_PATH.split_whitespace().collect();
    assert_eq!(names(path.clone()), expected, "a statement is gone");
    for statement in path.clone() {
        let open = open_tables(&statement.sql);
        assert!(open.is_empty(), "{}: {open:?}", statement.name);
    }
    let devices = path.filter(|s| touches(&s.sql, BY_DEVICE));
    assert_eq!(names(devices), listed(DEVICES_ON_THE_PATH));
}

/// Statements, each behind the tables that it leaves open.
const TRIALS: &str = "\
: SELECT 1 FROM log l WHERE l.group_id = $1
: SELECT 1 FROM log WHERE seq > 0 AND group_id = ANY($1)
: SELECT 1 FROM unnest($1::bytea[]) AS q(id), LATERAL (SELECT * FROM log WHERE group_id = q.id) l
: SELECT 1 FROM epochs e JOIN log l ON l.group_id = e.group_id WHERE e.group_id = $1
: INSERT INTO log (group_id, seq) VALUES ($1, $2)
log: SELECT 1 FROM log WHERE seq = $1
log: SELECT l.group_id = $1 FROM log l
log: SELECT 1 FROM log WHERE group_id >= $1
log: SELECT 1 FROM log WHERE group_id = $1 OR seq = $2
log: SELECT 1 FROM log WHERE NOT (group_id = $1)
log: SELECT 1 FROM log WHERE payload = ' AND group_id = $1'
log: INSERT INTO log (seq) VALUES ($1)
epochs: SELECT 1 FROM log l, epochs e WHERE l.group_id = $1 AND e.epoch_seq = l.seq
epochs log: SELECT 1 FROM epochs e JOIN log l ON l.group_id = e.group_id
log: DELETE FROM log WHERE group_id = $1 AND seq IN (SELECT seq FROM log WHERE kind = 4)
log: UPDATE log SET seq = 1 FROM device_groups d WHERE log.group_id = d.group_id";

#[test]
fn the_rule_can_fail() {
    for (open, sql) in TRIALS.lines().filter_map(|line| line.split_once(": ")) {
        assert_eq!(open_tables(sql).join(" "), open, "{sql}");
    }
    let source = r#"macro_rules! m { () => { " FROM epochs" }; } let a = concat!("/* a::b */ SELECT", m!(), " WHERE x");"#;
    let found = statements(source);
    let sql: Vec<&str> = found[0].sql.split_whitespace().collect();
    assert_eq!(found[0].name, "a::b");
    assert_eq!(sql, ["SELECT", "FROM", "epochs", "WHERE", "x"]);
}

fn listed(list: &str) -> BTreeSet<&str> {
    let lines = list.lines().filter_map(|line| line.split_once(": "));
    lines.map(|(name, _)| name.trim()).collect()
}

fn names<'s>(statements: impl Iterator<Item = &'s Statement>) -> BTreeSet<&'s str> {
    statements.map(|s| s.name.as_str()).collect()
}

/// A word, a parameter, a mark or a quoted text (with its quote), and the parentheses or braces that it stands in (0: none).
struct Word<'s> {
    text: &'s str,
    block: usize,
}

/// Cuts Rust (`quote` is `"`) and SQL (`'`) alike. No text holds an escaped quote.
fn words(mut rest: &str, quote: char) -> Vec<Word<'_>> {
    let (mut words, mut open, mut blocks) = (Vec::new(), vec![0], 0);
    while let Some(first) = rest.chars().next() {
        let of_word = |c: char| c.is_alphanumeric() || "_.$".contains(c);
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n'),
            c if c == quote => rest[1..].find(quote).map(|end| end + 2),
            c if of_word(c) => rest.find(|c| !of_word(c)),
            c => Some(c.len_utf8()),
        };
        let (text, after) = rest.split_at(length.unwrap_or(rest.len()));
        if matches!(text, ")" | "}" | "]") {
            open.pop();
        }
        if !text.trim().is_empty() && !text.starts_with("//") {
            let block = open.last().copied().unwrap_or(0);
            words.push(Word { text, block });
        }
        if matches!(text, "(" | "{" | "[") {
            blocks += 1;
            open.push(blocks);
        }
        rest = after;
    }
    words
}

fn touches(sql: &str, family: &str) -> bool {
    words(sql, '\'').iter().any(|word| among(family, word.text))
}

/// Tables by group in a statement that are not bound to a group that the statement names. An INSERT binds its table if it lists `group_id`. Everything else
/// does by an equality of the table's `group_id`, see [`is_bound`].
fn open_tables(sql: &str) -> Vec<&str> {
    let words = words(sql, '\'');
    let tables = (0..words.len()).filter(|at| among(BY_GROUP, words[*at].text));
    let mut open: Vec<usize> = tables.filter(|at| !inserts(&words, *at)).collect();
    let mut bound = unnested(&words);
    loop {
        let (now, still): (Vec<usize>, Vec<usize>) = open
            .into_iter()
            .partition(|at| is_bound(&words, *at, &bound));
        if now.is_empty() {
            return still.into_iter().map(|at| words[at].text).collect();
        }
        bound.extend(now.into_iter().map(|at| alias(&words, at)));
        open = still;
    }
}

/// Whether an equality that stands in the same parentheses as the table, behind WHERE, ON or AND and with no OR beside it, says what its `group_id` is: a
/// parameter, `ANY` of something, or a column `group_id` or `id` of what is known (an `unnest`, a table that is bound).
fn is_bound(words: &[Word<'_>], table: usize, known: &[&str]) -> bool {
    let (name, block) = (alias(words, table), words[table].block);
    let beside = words.iter().filter(|word| word.block == block);
    let beside: Vec<&str> = beside.map(|word| word.text).collect();
    let own = |side: &str| match side.split_once('.') {
        Some((of, column)) => of == name && column == "group_id",
        None => side == "group_id" && name == words[table].text,
    };
    let given = |side: &str| match side.split_once('.') {
        Some((of, column)) => known.contains(&of) && matches!(column, "group_id" | "id"),
        None => side == "ANY" || side.starts_with('$'),
    };
    let says = |words: &[&str]| match words {
        ["WHERE" | "ON" | "AND", a, "=", b] => own(a) && given(b) || own(b) && given(a),
        _ => false,
    };
    !beside.contains(&"OR") && beside.windows(4).any(says)
}

/// What a table is called where it is named: keywords are in capitals in this service, names are not.
fn alias<'s>(words: &[Word<'s>], table: usize) -> &'s str {
    let next = words[table + 1..].iter().find(|word| word.text != "AS");
    let is_name = |word: &&Word<'_>| word.text.starts_with(|c: char| c.is_ascii_lowercase());
    next.filter(is_name)
        .map_or(words[table].text, |word| word.text)
}

/// Whether rows with a `group_id` are inserted into the table that is named here.
fn inserts(words: &[Word<'_>], table: usize) -> bool {
    let mut listed = words[table + 1..]
        .iter()
        .take_while(|word| word.text != ")");
    table > 0 && words[table - 1].text == "INTO" && listed.any(|word| word.text == "group_id")
}

/// What the `unnest`s of a statement are called.
fn unnested<'s>(words: &[Word<'s>]) -> Vec<&'s str> {
    let calls = (0..words.len()).filter(|at| words[*at].text == "unnest");
    let name = |at: usize| {
        let beside = words[at..].iter().filter(|w| w.block == words[at].block);
        beside.skip_while(|w| w.text != "AS").nth(1).map(|w| w.text)
    };
    calls.filter_map(name).collect()
}

/// A statement of the store, named by the comment that it begins with.
struct Statement {
    name: String,
    sql: String,
}

/// All statements of the store. A text that begins as one and has no name would not be looked at.
fn store() -> Vec<Statement> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store");
    let mut found = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        for verb in ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"] {
            let nameless = source.find(&format!("\"{verb} "));
            assert_eq!(nameless, None, "a statement without a name");
        }
        found.extend(statements(&source));
    }
    found
}

fn statements(source: &str) -> Vec<Statement> {
    let words = words(source, '"');
    let texts: Vec<&str> = words.iter().map(|word| word.text).collect();
    let macros = macros(&words);
    let statement = |at: usize| {
        let (name, sql) = texts[at].strip_prefix("\"/* ")?.split_once(" */")?;
        let more = pieces(&texts[at + 1..], &macros);
        let (name, sql) = (name.to_owned(), format!("{}{more}", sql.trim_matches('"')));
        Some(Statement { name, sql })
    };
    (0..texts.len()).filter_map(statement).collect()
}

/// The further pieces of a `concat!`. What an argument of a macro stands for is not known: it binds nothing.
fn pieces(mut texts: &[&str], macros: &BTreeMap<&str, String>) -> String {
    let mut sql = String::new();
    loop {
        texts = match texts {
            [",", text, rest @ ..] if text.starts_with('"') && !text.starts_with("\"/* ") => {
                sql.push_str(text.trim_matches('"'));
                rest
            }
            [",", name, "!", rest @ ..] => {
                sql.push_str(&macros[name]);
                let end = rest.iter().position(|text| *text == ")").unwrap();
                &rest[end + 1..]
            }
            [",", argument, rest @ ..] if argument.starts_with('$') => {
                sql.push_str(" ? ");
                rest
            }
            _ => return sql,
        };
    }
}

/// What each macro of a file stands for: the texts up to its closing brace.
fn macros<'s>(words: &[Word<'s>]) -> BTreeMap<&'s str, String> {
    let begins = (0..words.len()).filter(|at| words[*at].text == "macro_rules");
    let texts = |at: usize| {
        let end = |word: &&Word<'_>| word.text == "}" && word.block == words[at].block;
        let body = words[at..].iter().take_while(|word| !end(word));
        let texts = body.filter_map(|word| word.text.strip_prefix('"'));
        let texts: Vec<&str> = texts.map(|text| text.trim_matches('"')).collect();
        (words[at + 2].text, texts.join(" ? "))
    };
    begins.map(texts).collect()
}
