//! `./dev conformance`: the contract's rules, one by one, against any server.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use interop::{
    conformance::{self, DEVICES, Verdict},
    wire::Place,
    world::World,
};
use serde_json::json;

/// Checks whether a server keeps the rules of the wire contract. Without a target: the services of this repository, started for it.
#[derive(Debug, Parser)]
#[command(name = "conformance", version)]
struct Cli {
    /// The Delivery Service, host:port or a URL (plain text without https://)
    #[arg(long, requires = "invitation")]
    target: Option<String>,
    /// The Authentication Service that it trusts [default: the target]
    #[arg(long, requires = "target")]
    auth: Option<String>,
    /// An invitation code of a new user; four are needed, each is used once
    #[arg(long, value_name = "CODE")]
    invitation: Vec<String>,
    /// PEM file of the root that signs the server's TLS certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Only checks whose name holds this
    #[arg(long, default_value = "")]
    only: String,
    /// Print the verdicts as one JSON object in the last line
    #[arg(long)]
    json: bool,
}

fn url(text: String) -> String {
    if text.contains("://") {
        text
    } else {
        format!("http://{text}")
    }
}

fn say(line: &str) {
    // Nobody may be watching.
    let _gone = writeln!(std::io::stdout(), "{line}");
}

fn tell(verdict: &Verdict) {
    let Verdict { rule, name, broken } = verdict;
    match broken {
        None => say(&format!("kept    {rule}: {name}")),
        Some(how) => say(&format!("BROKEN  {rule}: {name}: {how}")),
    }
}

async fn against(cli: &Cli, target: String) -> anyhow::Result<Vec<Verdict>> {
    anyhow::ensure!(
        cli.invitation.len() >= DEVICES,
        "{DEVICES} invitations are needed: --invitation CODE, {DEVICES} times"
    );
    let ca = cli
        .ca
        .as_ref()
        .map(std::fs::read)
        .transpose()
        .context("--ca")?;
    let place = Place {
        auth_url: url(cli.auth.clone().unwrap_or_else(|| target.clone())),
        delivery_url: url(target),
        ca,
    };
    conformance::run(&place, cli.invitation.clone(), &cli.only, tell).await
}

async fn against_ours(cli: &Cli) -> anyhow::Result<Vec<Verdict>> {
    let world = World::start().await?;
    let mut invitations = Vec::new();
    for device in 0..DEVICES {
        invitations.push(world.invite(&format!("conformance-{device}")).await?);
    }
    let verdicts = conformance::run(&world.place(), invitations, &cli.only, tell).await?;
    world.stop().await?;
    Ok(verdicts)
}

#[tokio::main]
async fn main() -> ExitCode {
    run(Cli::parse()).await.unwrap_or_else(|error| {
        // Nobody may be watching.
        let _gone = writeln!(std::io::stderr(), "conformance: {error:#}");
        ExitCode::from(2)
    })
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let verdicts = match cli.target.clone() {
        Some(target) => against(&cli, target).await?,
        None => against_ours(&cli).await?,
    };
    let broken: Vec<&Verdict> = verdicts.iter().filter(|v| v.broken.is_some()).collect();
    say(&format!(
        "\n{} checks, {} broken",
        verdicts.len(),
        broken.len()
    ));
    if cli.json {
        let list: Vec<_> = broken
            .iter()
            .map(|v| json!({ "rule": v.rule, "name": v.name, "how": v.broken }))
            .collect();
        let summary = json!({ "checks": verdicts.len(), "kept": verdicts.len() - broken.len(), "broken": list });
        say(&summary.to_string());
    }
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
