//! Commands.

use std::{
    io::{Read as _, Write as _},
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::Duration,
};

use clap::CommandFactory as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Cli, Command, Enroll, Group, Keys, Listen, Options, Send, Users, Whom, debug, output};
use crate::{
    core::{
        CoreError,
        group::{self, Founding},
        left_out, proposals,
        records::{self, GroupName},
    },
    failure::Failure,
    member::{
        Member,
        directory::{self, Name},
        enroll::{Enrolment, enroll},
        listen::Event,
        stock,
    },
    outcomes::{Failed, needs_person},
    profile::{PinnedRoot, Profile},
    progress::Stderr,
};

/// Runs one command; its answer, if it is not printed already.
///
/// # Errors
/// See [`Failure`].
pub async fn run(cli: Cli) -> Result<Option<Value>, Failure> {
    let options = &cli.options;
    let value = match cli.command {
        Command::Enroll(args) => enrolled(options, args).await?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "client-cli", &mut script);
            std::io::stdout()
                .write_all(&script)
                .map_err(|error| Failure::Profile(error.to_string()))?;
            return Ok(None);
        }
        Command::Listen(args) => {
            let member = open(options).await?;
            listen(&member, &args).await?;
            return Ok(None);
        }
        command => Box::pin(answer(&open(options).await?, command)).await?,
    };
    Ok(Some(value))
}

async fn answer(member: &Member, command: Command) -> Result<Value, Failure> {
    Ok(match command {
        Command::Whoami => output::whoami(member),
        Command::Devices { users } => {
            let mut named = names(&users, directory::user)?;
            if named.is_empty() {
                let own = &member.identity().person;
                named.push((own.domain.clone(), own.user));
            }
            output::devices(&member.devices(&named).await?)
        }
        Command::Users(Users::Search { text }) => output::users(&member.search(&text).await?),
        Command::Revoke { device } => {
            let seq = member.revoke(&directory::device(&device)?).await?;
            json!({ "device": device, "seq": seq })
        }
        Command::Keys(Keys::Publish { count, suite }) => {
            let stock = member.key_package_stock().await?;
            let code = u32::from(u16::from(suite));
            let own = stock.iter().find(|s| s.suite == code);
            let last_resort = stock::needs_last_resort(own);
            output::stock(
                &member
                    .publish_key_packages(suite, count, last_resort)
                    .await?,
            )
        }
        Command::Keys(Keys::Stock) => output::stock(&member.key_package_stock().await?),
        Command::Group(command) => grouped(member, command).await?,
        Command::Send(args) => send(member, &args).await?,
        Command::Sync { group } => {
            let mut synced = member.sync(group.as_ref()).await?;
            let groups = member.step(|step, _| Ok(records::groups(step)?))?;
            let answer = output::synced(&synced, &groups);
            let for_a_person = |failed: &Failed| needs_person(&failed.failure);
            if let Some(place) = synced.failed.iter().position(for_a_person) {
                // Everything else was done, and is answered for.
                writeln!(std::io::stdout(), "{answer}")
                    .map_err(|error| Failure::Profile(error.to_string()))?;
                return Err(synced.failed.swap_remove(place).failure);
            }
            answer
        }
        Command::Read {
            group,
            after,
            no_sync,
        } => read(member, &group, after, no_sync).await?,
        Command::Debug(command) => debug::run(member, command).await?,
        Command::Enroll(_) | Command::Completions { .. } | Command::Listen(_) => Value::Null,
    })
}

/// The profile, with what the options and the environment say in its place.
fn profile(options: &Options) -> Result<Profile, Failure> {
    let mut profile = Profile::read(&options.profile)?;
    if let Some(url) = &options.auth_url {
        profile.auth_url.clone_from(url);
    }
    if let Some(url) = &options.delivery_url {
        profile.delivery_url.clone_from(url);
    }
    if let Some(ca) = tls_ca(options)? {
        profile.tls_ca = Some(ca);
    }
    Ok(profile)
}

fn tls_ca(options: &Options) -> Result<Option<String>, Failure> {
    let Some(path) = &options.tls_ca else {
        return Ok(None);
    };
    std::fs::read_to_string(path)
        .map(Some)
        .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

fn deadline(options: &Options) -> Duration {
    Duration::from_secs(options.timeout_seconds)
}

async fn open(options: &Options) -> Result<Member, Failure> {
    let member = Member::open(&options.profile, profile(options)?, deadline(options)).await?;
    Ok(member
        .with_removals_per_hour(options.removals_per_hour)
        .with_left_out_wait(options.left_out_wait_seconds)
        .with_progress(Arc::new(Stderr::default())))
}

async fn enrolled(options: &Options, args: Enroll) -> Result<Value, Failure> {
    let needed = |url: &Option<String>, option: &str| {
        url.clone()
            .ok_or_else(|| Failure::Usage(format!("{option} is needed to enroll")))
    };
    let mut profile = Profile::new(
        &needed(&options.auth_url, "--auth-url")?,
        &needed(&options.delivery_url, "--delivery-url")?,
    );
    profile.tls_ca = tls_ca(options)?;
    let enrolment = Enrolment {
        invitation: args.invitation,
        domain: args.domain,
        root: args.root,
        other_roots: args
            .trust
            .iter()
            .map(|spec| trusted(spec))
            .collect::<Result<_, _>>()?,
        device_name: args.device_name,
        delivery_domain: args.delivery_domain,
        key_packages: args.key_packages,
    };
    let member = enroll(&options.profile, profile, &enrolment, deadline(options)).await?;
    Ok(output::whoami(&member))
}

fn trusted(spec: &str) -> Result<PinnedRoot, Failure> {
    let part = |key: &str| {
        let parts = spec.split(',');
        parts
            .filter_map(|part| part.split_once('='))
            .find(|(k, _)| *k == key)
            .map(|(_, value)| value)
            .ok_or_else(|| Failure::Usage(format!("--trust {spec}: {key}=… is missing")))
    };
    PinnedRoot::from_file(part("domain")?, part("url")?, Path::new(part("root")?))
}

fn names(
    texts: &[String],
    parse: impl Fn(&str) -> Result<Name, Failure>,
) -> Result<Vec<Name>, Failure> {
    texts.iter().map(|text| parse(text)).collect()
}

/// The named devices, and the active devices of the named users.
async fn whom(member: &Member, whom: &Whom) -> Result<Vec<Name>, Failure> {
    let (mut devices, users) = named(whom)?;
    devices.extend(member.active_devices(&users).await?);
    Ok(devices)
}

/// The devices and the users that are named.
fn named(whom: &Whom) -> Result<(Vec<Name>, Vec<Name>), Failure> {
    let mut devices = names(&whom.devices, directory::device)?;
    let mut users = names(&whom.users, directory::user)?;
    if let Some(file) = &whom.from {
        for line in lines_of(file)? {
            match directory::device(&line) {
                Ok(device) => devices.push(device),
                Err(_) => users.push(directory::user(&line)?),
            }
        }
    }
    Ok((devices, users))
}

/// The lines of a file that say something; `-` is stdin.
fn lines_of(file: &Path) -> Result<Vec<String>, Failure> {
    let read = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = read.map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

async fn grouped(member: &Member, command: Group) -> Result<Value, Failure> {
    let some = |devices: Vec<Name>| {
        if devices.is_empty() {
            return Err(Failure::Usage(
                "name at least one --user or --device".into(),
            ));
        }
        Ok(devices)
    };
    let done = match command {
        Group::Create {
            whom: args,
            suite,
            id,
            past_epochs,
            no_own_devices,
        } => {
            let mut devices = whom(member, &args).await?;
            if !no_own_devices {
                let own = &member.identity().person;
                let user = (own.domain.clone(), own.user);
                devices.extend(member.active_devices(&[user]).await?);
            }
            let founding = Founding {
                past_epochs,
                ..Founding::of(suite)
            };
            let created = member.create_group(founding, id.map(|id| id.0)).await?;
            let own = &member.identity().person;
            let own = (own.domain.clone(), own.device);
            let others: Vec<_> = devices.into_iter().filter(|d| *d != own).collect();
            member.add_first(created, &others).await?
        }
        Group::Add { group, whom: args } => {
            let devices = some(whom(member, &args).await?)?;
            member.add(&group, &devices).await?
        }
        Group::Remove {
            group,
            leaving: true,
            ..
        } => member.remove(&group, &[]).await?,
        Group::Remove {
            group, whom: args, ..
        } => {
            let (mut devices, users) = named(&args)?;
            devices.extend(member.devices_in(&group, &users)?);
            member.remove(&group, &some(devices)?).await?
        }
        Group::Update { group } => member.update(&group).await?,
        Group::Rejoin { group } => member.rejoin_by_hand(&group).await?,
        Group::Replace { group } => member.replace(&group).await?,
        Group::Leave { group } => {
            let seq = member.leave(&group).await?;
            return Ok(json!({ "group": group.to_string(), "seq": seq }));
        }
        Group::List => {
            let groups = member.step(|step, _| Ok(records::groups(step)?))?;
            let lines: Vec<_> = groups.iter().map(output::group_line).collect();
            return Ok(json!({ "groups": lines }));
        }
        Group::Show { group } => {
            return member.step(|step, context| {
                let record = records::known(step, &group)?;
                let mls_group = match group::load(step, &group) {
                    Ok(mls_group) => Some(mls_group),
                    Err(CoreError::Unknown) => None,
                    Err(error) => return Err(error),
                };
                let left_out = left_out::of_group(step, &group)?;
                let proposed = proposals::all(step, &group)?;
                Ok(output::group(
                    &record,
                    mls_group.as_ref(),
                    &left_out,
                    &proposed,
                    context,
                ))
            });
        }
    };
    Ok(output::committed(&done))
}

async fn send(member: &Member, args: &Send) -> Result<Value, Failure> {
    let unreadable = |what: &str, error: std::io::Error| Failure::Usage(format!("{what}: {error}"));
    let mut messages: Vec<([u8; 16], Vec<u8>)> = Vec::new();
    if let Some(file) = &args.lines {
        let text = std::fs::read_to_string(file)
            .map_err(|error| unreadable(&file.display().to_string(), error))?;
        for (index, line) in text.lines().enumerate() {
            let id = match &args.id_seed {
                Some(seed) => seeded_id(seed, index),
                None => member.new_id(),
            };
            messages.push((id, line.as_bytes().to_vec()));
        }
    } else {
        let text = match &args.text {
            Some(text) => text.clone().into_bytes(),
            None => {
                let mut text = Vec::new();
                std::io::stdin()
                    .read_to_end(&mut text)
                    .map_err(|error| unreadable("stdin", error))?;
                text
            }
        };
        let id = args
            .message_id
            .map_or_else(|| member.new_id(), |id| *id.as_bytes());
        messages.push((id, text));
    }
    let sent = member.send(&args.group, &messages).await?;
    let group = args.group.to_string();
    let mut lines: Vec<_> = sent.iter().map(|sent| output::sent(&group, sent)).collect();
    match (args.lines.is_some(), lines.len()) {
        (false, 1) => Ok(lines.remove(0)),
        _ => Ok(json!({ "sent": lines })),
    }
}

/// The id of line `index` of `send --lines --id-seed`: the same for the same seed and number.
pub fn seeded_id(seed: &str, index: usize) -> [u8; 16] {
    let hash = Sha256::digest(format!("chancery line id\0{seed}\0{index}"));
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

async fn read(
    member: &Member,
    name: &GroupName,
    after: u64,
    no_sync: bool,
) -> Result<Value, Failure> {
    if !no_sync {
        member.sync(Some(name)).await?;
    }
    let record = member.record(name)?;
    let entries = member.step(|step, _| Ok(records::entries(step, name, after, usize::MAX)?))?;
    Ok(json!({
        "group": name.to_string(),
        "head_seq": record.head_seq,
        "chain": hex::encode(record.chain),
        "joined_seq": record.joined_seq,
        "entries": entries.iter().map(output::entry).collect::<Vec<_>>(),
    }))
}

async fn listen(member: &Member, args: &Listen) -> Result<(), Failure> {
    let mut messages = 0;
    let mut sink = |event: Event| {
        // A reader that went away ends the command.
        let mut stdout = std::io::stdout().lock();
        let written = writeln!(stdout, "{}", output::event(&event)).and_then(|()| stdout.flush());
        let mut done = written.is_err();
        if let Event::Entry(_, entry) = &event
            && let Some(text) = &entry.text
        {
            messages += 1;
            let text = String::from_utf8_lossy(text);
            done |= args.until_count.is_some_and(|count| messages >= count);
            done |= args
                .until_text
                .as_ref()
                .is_some_and(|t| text.contains(t.as_str()));
        }
        if done {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let listening = member.listen(&args.groups, &mut sink);
    match args.seconds {
        Some(seconds) => {
            match tokio::time::timeout(Duration::from_secs(seconds), listening).await {
                Ok(done) => done,
                Err(_) => Ok(()),
            }
        }
        None => listening.await,
    }
}
