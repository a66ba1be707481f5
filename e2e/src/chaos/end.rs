//! After the faults: everybody catches up, every group is tried once more, and all that there is to compare is written down.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{
    history::{Asked, Event, Wanted},
    people::{Crowd, Ground},
    servers::{DOMAIN, Servers},
};
use crate::{programs::Said, story::world::each};

/// A row of the server's log, read from its table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// `<domain>/<hex>`.
    pub group: String,
    /// Its place.
    pub seq: u64,
    /// MLS epoch of its framing.
    pub epoch: u64,
    /// Name of that epoch.
    pub epoch_seq: u64,
    /// `EntryKind`.
    pub kind: u32,
    /// By its maker.
    pub message_id: String,
    /// Unix microseconds.
    pub accepted_at_micros: i64,
    /// In hex.
    pub chain: String,
    /// In hex.
    pub payload_sha256: String,
}

/// What a device made of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub device: String,
    /// `<domain>/<hex>`.
    pub group: String,
    /// It was never removed.
    pub steady: bool,
    /// The answer of `read`.
    pub read: Value,
    /// The answer of `group show`.
    pub show: Value,
}

/// The server's log.
pub const LOG: &str = "log.jsonl";
/// The devices' journals and states.
pub const STATES: &str = "states.jsonl";
/// One-time KeyPackages that were used for more than one Welcome, one reference to a line.
pub const REUSED: &str = "reused.jsonl";

/// Everybody catches up and every group is tried; what does not work within `patience` is written down.
///
/// # Errors
/// A command cannot be started.
pub fn settle(crowd: &Crowd, patience: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + patience;
    let indexes: Vec<usize> = (0..crowd.people.len()).collect();
    each(&indexes, |index| {
        persist(crowd, *index, until, Asked::Sync, &["sync"])
    })?;
    each(&crowd.grounds, |ground| {
        let ailing = probe(crowd, ground, until)?;
        crowd.recorder.note(Event::Probe {
            group: ground.name.clone(),
            ailing,
        });
        Ok(())
    })?;
    Ok(())
}

/// Runs a command again until it succeeds; what it said last.
fn persist(
    crowd: &Crowd,
    who: usize,
    until: Instant,
    asked: Asked,
    words: &[&str],
) -> anyhow::Result<Said> {
    let op = crowd.recorder.number();
    loop {
        let said = crowd.attempt(op, &crowd.people[who], asked.clone(), words)?;
        if said.code == 0 || Instant::now() > until {
            return Ok(said);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Somebody speaks, another changes keys, everybody hears of it. What is wrong, if anything is.
fn probe(crowd: &Crowd, ground: &Ground, until: Instant) -> anyhow::Result<Option<String>> {
    let group = ground.name.as_str();
    let (first, last) = (ground.members[0], ground.members[ground.members.len() - 1]);
    let wrong = |who: usize, what: &str, said: &Said| {
        let name = &crowd.people[who].device.name;
        (said.code != 0).then(|| format!("{name}: {what}: {} {}", said.code, said.error))
    };
    let message_id = Uuid::new_v4().to_string();
    let text = format!("are you there? {message_id}");
    let asked = Asked::Send {
        group: group.to_owned(),
        messages: vec![Wanted {
            message_id: message_id.clone(),
            text: text.clone(),
        }],
    };
    let words = ["send", "--group", group, "--message-id", &message_id, &text];
    let said = persist(crowd, first, until, asked, &words)?;
    if let Some(ailing) = wrong(first, "send", &said) {
        return Ok(Some(ailing));
    }
    let asked = Asked::Commit {
        group: group.to_owned(),
        operation: "group update".to_owned(),
    };
    let said = persist(
        crowd,
        last,
        until,
        asked,
        &["group", "update", "--group", group],
    )?;
    if let Some(ailing) = wrong(last, "group update", &said) {
        return Ok(Some(ailing));
    }
    for who in &ground.members {
        let said = persist(crowd, *who, until, Asked::Sync, &["sync", "--group", group])?;
        if let Some(ailing) = wrong(*who, "sync", &said) {
            return Ok(Some(ailing));
        }
    }
    Ok(None)
}

/// Writes down what the devices hold. They do not ask the server any more.
///
/// # Errors
/// A file cannot be written.
pub fn write_states(crowd: &Crowd, folder: &Path) -> anyhow::Result<()> {
    let pairs: Vec<(usize, &Ground)> = crowd
        .grounds
        .iter()
        .flat_map(|ground| {
            let guest = std::iter::once(ground.guest);
            let all = ground.members.iter().copied().chain(guest);
            all.map(move |who| (who, ground))
        })
        .collect();
    let states = each(&pairs, |(who, ground)| {
        let device = &crowd.people[*who].device;
        let read = device.attempt(&["read", "--no-sync", "--group", &ground.name])?;
        let show = device.attempt(&["group", "show", "--group", &ground.name])?;
        Ok(State {
            device: device.name.clone(),
            group: ground.name.clone(),
            steady: *who != ground.guest,
            read: read.answer,
            show: show.answer,
        })
    })?;
    write(&folder.join(STATES), &states)
}

/// Writes down what the server holds.
///
/// # Errors
/// PostgreSQL cannot be asked, or a file cannot be written.
pub fn write_log(servers: &Servers, folder: &Path) -> anyhow::Result<()> {
    let mut client = servers.postgres.client()?;
    let rows = client.query(
        "/* chaos::log */ SELECT encode(group_id, 'hex'), seq, epoch, epoch_seq, kind::int, message_id::text, \
         (extract(epoch FROM accepted_at) * 1000000)::bigint, encode(chain, 'hex'), encode(sha256(payload), 'hex') \
         FROM log ORDER BY group_id, seq",
        &[],
    )?;
    let number = |row: &postgres::Row, column: usize| row.get::<_, i64>(column).cast_unsigned();
    let rows: Vec<Row> = rows
        .iter()
        .map(|row| Row {
            group: format!("{DOMAIN}/{}", row.get::<_, String>(0)),
            seq: number(row, 1),
            epoch: number(row, 2),
            epoch_seq: number(row, 3),
            kind: row.get::<_, i32>(4).cast_unsigned(),
            message_id: row.get(5),
            accepted_at_micros: row.get(6),
            chain: row.get(7),
            payload_sha256: row.get(8),
        })
        .collect();
    write(&folder.join(LOG), &rows)?;
    let reused = client.query(
        "/* chaos::reused */ SELECT encode(w.key_package_ref, 'hex') FROM welcomes w JOIN key_packages k ON k.ref = w.key_package_ref \
         WHERE NOT k.last_resort GROUP BY w.key_package_ref HAVING count(*) > 1",
        &[],
    )?;
    let reused: Vec<String> = reused.iter().map(|row| row.get(0)).collect();
    write(&folder.join(REUSED), &reused)
}

fn write<T: Serialize>(path: &Path, lines: &[T]) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("{}", path.display()))?;
    let mut file = BufWriter::new(file);
    for line in lines {
        serde_json::to_writer(&mut file, line)?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}
