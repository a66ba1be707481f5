//! `send`, `read`, `listen`, `outbox`: their arguments and what they do.

use std::{
    io::{self, ErrorKind},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use chancery_proto::command_line::{self, InputError, STDIN, write_json_line};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Options, output};
use crate::{
    core::records::{self, GroupName, JournalEntry},
    failure::Failure,
    member::{
        Member,
        listen::{Begin, Event, Following, Stop},
    },
};

/// `send`
#[derive(Debug, Args)]
pub struct Send {
    /// `<domain>/<hex>`.
    #[arg(long)]
    pub group: GroupName,
    /// What to say, after `--` if it begins with a dash; stdin when neither this nor `--lines` is given.
    #[arg(conflicts_with = "lines")]
    pub text: Option<String>,
    /// The message's id; the same id with the same text is the same message.
    #[arg(long, visible_alias = "id", conflicts_with = "lines")]
    pub message_id: Option<Uuid>,
    /// A file; each line that is not empty is a message. `-` is stdin.
    #[arg(long, value_name = "FILE")]
    pub lines: Option<PathBuf>,
    /// Gives line N of `--lines` the id made of this and N, so that a killed command can be repeated.
    #[arg(long, requires = "lines", value_name = "TEXT")]
    pub id_seed: Option<String>,
    /// Sends an empty message, or empty lines, where there is no text; refused otherwise.
    #[arg(long)]
    pub allow_empty: bool,
}

/// `read`
#[derive(Debug, Args)]
pub struct Read {
    /// `<domain>/<hex>`.
    #[arg(long)]
    pub group: GroupName,
    /// Only entries after this seq.
    #[arg(long, default_value_t = 0)]
    pub after: u64,
    /// Only the last so many entries.
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Do not ask the server first.
    #[arg(long)]
    pub no_sync: bool,
}

/// `listen`
#[derive(Debug, Args)]
pub struct Listen {
    /// Only these groups; all, and new ones, when none is named.
    #[arg(long = "group")]
    pub groups: Vec<GroupName>,
    /// Begins after this seq of the one group that is named, in place of where this device has read to.
    #[arg(long, value_name = "SEQ", conflicts_with = "from_start")]
    pub after: Option<u64>,
    /// Begins with everything that this device has ever read.
    #[arg(long)]
    pub from_start: bool,
    /// Keeps in the profile, under this name, how far was printed: the next `listen` of the name goes on there.
    /// `--after` and `--from-start` say where a name begins that is new.
    #[arg(long, value_name = "NAME", value_parser = consumer)]
    pub consumer: Option<String>,
    /// Ends after this time.
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// Ends after this many application messages.
    #[arg(long, value_name = "N")]
    pub until_count: Option<u64>,
    /// Ends with the first message that holds this text.
    #[arg(long, value_name = "TEXT")]
    pub until_text: Option<String>,
}

/// `outbox`
#[derive(Debug, Subcommand)]
pub enum Outbox {
    /// Lists messages that wait for an answer; `sync` sends them again.
    List,
    /// Takes a message out: it is not sent any more.
    Drop {
        /// The message's id.
        message_id: Uuid,
        /// Also one that the service may have accepted: then everybody reads it all the same, and it stands as this
        /// device's own.
        #[arg(long)]
        force: bool,
    },
}

fn consumer(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err("a consumer's name has 1 to 64 of A-Z a-z 0-9 . _ -".into());
    }
    Ok(name.to_owned())
}

/// Sends what the arguments say.
///
/// # Errors
/// Nothing to say, something that cannot be said, or as [`Member::send`].
pub async fn send(member: &Member, options: &Options, args: &Send) -> Result<Value, Failure> {
    let messages = match &args.lines {
        Some(file) => lines(member, options, args, file)?,
        None => vec![one(member, options, args).await?],
    };
    let sent = member.send(&args.group, &messages).await?;
    let group = args.group.to_string();
    let mut lines: Vec<_> = sent.iter().map(|sent| output::sent(&group, sent)).collect();
    match (args.lines.is_some(), lines.len()) {
        (false, 1) => Ok(lines.remove(0)),
        _ => Ok(json!({ "sent": lines })),
    }
}

type Message = ([u8; 16], Vec<u8>);

async fn one(member: &Member, options: &Options, args: &Send) -> Result<Message, Failure> {
    let (name, text) = match &args.text {
        Some(text) => ("TEXT", text.clone()),
        None => {
            let limit = match member.message_bytes().await {
                Ok(limit) => limit.min(options.max_input_bytes),
                // Offline, and never asked: what is read is looked at again before it is kept.
                Err(Failure::Unanswered { .. }) => options.max_input_bytes,
                Err(failure) => return Err(failure),
            };
            ("stdin", command_line::read_text(Path::new(STDIN), limit)?)
        }
    };
    if text.is_empty() && !args.allow_empty {
        return Err(empty(name));
    }
    let text = text.into_bytes();
    let id = match args.message_id {
        Some(id) => *id.as_bytes(),
        None => unnamed(member, &args.group, &text)?,
    };
    Ok((id, text))
}

fn lines(
    member: &Member,
    options: &Options,
    args: &Send,
    file: &Path,
) -> Result<Vec<Message>, Failure> {
    let text = command_line::read_text(file, options.max_input_bytes)?;
    let mut messages = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() && !args.allow_empty {
            continue;
        }
        let line = line.as_bytes().to_vec();
        let id = match &args.id_seed {
            Some(seed) => seeded_id(seed, index),
            None => unnamed(member, &args.group, &line)?,
        };
        messages.push((id, line));
    }
    if messages.is_empty() {
        return Err(empty(&file.display().to_string()));
    }
    Ok(messages)
}

/// The id of a text that nobody gave one: of the same text that is still without an answer, or a new one.
fn unnamed(member: &Member, group: &GroupName, text: &[u8]) -> Result<[u8; 16], Failure> {
    let waiting = member.take_up(group, text)?;
    Ok(waiting.unwrap_or_else(|| member.new_id()))
}

fn empty(name: &str) -> Failure {
    Failure::Input(InputError::Empty {
        name: format!("{name}: --allow-empty sends nothing all the same"),
    })
}

/// The id of line `index` of `send --lines --id-seed`: the same for the same seed and number.
pub fn seeded_id(seed: &str, index: usize) -> [u8; 16] {
    let hash = Sha256::digest(format!("chancery line id\0{seed}\0{index}"));
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

/// The journal of a group.
///
/// # Errors
/// As [`Member::sync`], or the store.
pub async fn read(member: &Member, args: &Read) -> Result<Value, Failure> {
    let name = &args.group;
    if !args.no_sync {
        member.sync(Some(name)).await?;
    }
    let record = member.record(name)?;
    let entries =
        member.step(|step, _| Ok(records::entries(step, name, args.after, usize::MAX)?))?;
    let last = args.last.unwrap_or(usize::MAX);
    let shown = &entries[entries.len().saturating_sub(last)..];
    Ok(json!({
        "group": name.to_string(),
        "head_seq": record.head_seq,
        "chain": hex::encode(record.chain),
        "joined_seq": record.joined_seq,
        "entries": shown.iter().map(output::entry).collect::<Vec<_>>(),
    }))
}

/// Lists or changes what waits for an answer.
///
/// # Errors
/// See [`Member::drop_waiting`], or the store.
pub fn outbox(member: &Member, command: &Outbox) -> Result<Value, Failure> {
    match command {
        Outbox::List => {
            let waiting = member.waiting()?;
            let lines: Vec<_> = waiting.iter().map(output::waiting).collect();
            Ok(json!({ "waiting": lines }))
        }
        Outbox::Drop { message_id, force } => {
            let dropped = member.drop_waiting(*message_id.as_bytes(), *force)?;
            Ok(json!({ "dropped": output::waiting(&dropped) }))
        }
    }
}

/// Prints what comes, one object a line, until a condition holds or the reader goes away.
///
/// # Errors
/// As [`Member::listen`]; stdout's when it takes no line, though its reader is there.
pub async fn listen(member: &Member, args: &Listen) -> Result<Result<(), io::Error>, Failure> {
    let begin = match (args.after, args.from_start) {
        (Some(_), _) if args.groups.len() != 1 => {
            return Err(Failure::Usage(
                "--after needs one --group: every group counts for itself".into(),
            ));
        }
        (Some(seq), _) => Begin::After(seq),
        (None, true) => Begin::Start,
        (None, false) => Begin::Here,
    };
    let following = Following {
        groups: args.groups.clone(),
        begin,
        consumer: args.consumer.clone(),
    };
    let mut messages = 0;
    let mut sink = |event: Event| {
        if let Err(error) = write_json_line(&mut io::stdout().lock(), &output::event(&event)) {
            return ControlFlow::Break(Stop::NotTaken(error));
        }
        if let Event::Entry(_, entry) = &event
            && entry.text.is_some()
        {
            messages += 1;
            if ends(args, entry, messages) {
                return ControlFlow::Break(Stop::Seen);
            }
        }
        ControlFlow::Continue(())
    };
    let listening = member.listen(&following, &mut sink);
    let stopped = match args.seconds {
        Some(seconds) => {
            match tokio::time::timeout(Duration::from_secs(seconds), listening).await {
                Ok(stopped) => stopped?,
                Err(_) => Stop::Seen,
            }
        }
        None => listening.await?,
    };
    Ok(match stopped {
        // `listen | head -1` has had what it wanted.
        Stop::NotTaken(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        Stop::NotTaken(_) | Stop::Seen => Ok(()),
    })
}

fn ends(args: &Listen, entry: &JournalEntry, messages: u64) -> bool {
    let holds = |text: &String| {
        let (said, wanted) = (entry.text.as_deref().unwrap_or_default(), text.as_bytes());
        wanted.is_empty() || said.windows(wanted.len()).any(|part| part == wanted)
    };
    args.until_count.is_some_and(|count| messages >= count)
        || args.until_text.as_ref().is_some_and(holds)
}
