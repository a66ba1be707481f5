//! Commands.

use std::{path::Path, sync::Arc, time::Duration};

use chancery_proto::command_line;
use clap::CommandFactory as _;
use serde_json::{Value, json};

use super::{
    Cli, Command, Enroll, Group, Keys, Options, Users, Whom, debug, messages, output, print::Answer,
};
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
        stock,
    },
    outcomes::{Failed, needs_person},
    profile::{PEM_BYTES, PinnedRoot, Profile},
    progress::Stderr,
};

/// Runs one command.
///
/// # Errors
/// See [`Failure`].
pub async fn run(cli: Cli) -> Result<Answer, Failure> {
    let options = &cli.options;
    let value = match cli.command {
        Command::Enroll(args) => enrolled(options, args).await?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "client-cli", &mut script);
            return Ok(Answer::Text(script));
        }
        Command::Listen(args) => {
            return Ok(
                match messages::listen(&open(options).await?, &args).await? {
                    Ok(()) => Answer::Printed,
                    Err(error) => Answer::Unprinted(error),
                },
            );
        }
        Command::Sync { group } => return synced(&open(options).await?, group.as_ref()).await,
        command => Box::pin(answer(&open(options).await?, options, command)).await?,
    };
    Ok(Answer::Json(value))
}

async fn answer(member: &Member, options: &Options, command: Command) -> Result<Value, Failure> {
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
        Command::Group(command) => grouped(member, options, command).await?,
        Command::Send(args) => messages::send(member, options, &args).await?,
        Command::Read(args) => messages::read(member, &args).await?,
        Command::Outbox(command) => messages::outbox(member, &command)?,
        Command::Debug(command) => debug::run(member, command).await?,
        Command::Enroll(_)
        | Command::Completions { .. }
        | Command::Listen(_)
        | Command::Sync { .. } => Value::Null,
    })
}

/// Everything up to its head. What a person has to see to is said after the answer to everything else.
async fn synced(member: &Member, group: Option<&GroupName>) -> Result<Answer, Failure> {
    let mut synced = Box::pin(member.sync(group)).await?;
    let groups = member.step(|step, _| Ok(records::groups(step)?))?;
    let answer = output::synced(&synced, &groups);
    let for_a_person = |failed: &Failed| needs_person(&failed.failure);
    Ok(match synced.failed.iter().position(for_a_person) {
        Some(place) => Answer::Partly(answer, synced.failed.swap_remove(place).failure),
        None => Answer::Json(answer),
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
    Ok(Some(command_line::read_text(path, PEM_BYTES)?))
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
async fn whom(member: &Member, options: &Options, whom: &Whom) -> Result<Vec<Name>, Failure> {
    let (mut devices, users) = named(options, whom)?;
    devices.extend(member.active_devices(&users).await?);
    Ok(devices)
}

/// The devices and the users that are named.
fn named(options: &Options, whom: &Whom) -> Result<(Vec<Name>, Vec<Name>), Failure> {
    let mut devices = names(&whom.devices, directory::device)?;
    let mut users = names(&whom.users, directory::user)?;
    if let Some(file) = &whom.from {
        for line in lines_of(file, options.max_input_bytes)? {
            match directory::device(&line) {
                Ok(device) => devices.push(device),
                Err(_) => users.push(directory::user(&line)?),
            }
        }
    }
    Ok((devices, users))
}

/// The lines of a file that say something; `-` is stdin.
fn lines_of(file: &Path, max: u64) -> Result<Vec<String>, Failure> {
    let text = command_line::read_text(file, max)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

async fn grouped(member: &Member, options: &Options, command: Group) -> Result<Value, Failure> {
    let some = |devices: Vec<Name>| {
        if devices.is_empty() {
            return Err(Failure::Usage(
                "name somebody: --user, --device or --from, or --leaving where it is accepted"
                    .into(),
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
            let mut devices = whom(member, options, &args).await?;
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
            let devices = some(whom(member, options, &args).await?)?;
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
            let (mut devices, users) = named(options, &args)?;
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
