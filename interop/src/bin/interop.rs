//! `./dev interop`: other stacks as members through the real services, and scripts of the `mls_client` protocol between servers of it.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use interop::{
    large, matrix,
    mls_client::{self, mls_rs_peer::MlsRsPeer, openmls_peer::OpenMlsPeer},
    report::{self, Outcome, Part, Run},
    runner::{
        peers::{LISTENING, Peer, Source},
        play::{self, Options},
        script,
    },
};

/// Plays every scenario with every assignment of MLS stacks to its roles.
#[derive(Debug, Parser)]
#[command(name = "interop", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    play: Play,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the mls_client protocol, so that other runners can be pointed at it
    Serve {
        /// Which library
        #[arg(long, value_enum, default_value = "openmls")]
        stack: Stack,
        /// Where; port 0 is any free one, and the address is printed
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stack {
    /// Our client's store and openmls
    Openmls,
    /// mls-rs
    MlsRs,
}

impl Stack {
    fn name(self) -> &'static str {
        match self {
            Self::Openmls => "openmls",
            Self::MlsRs => "mls-rs",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Members through the real services
    Live,
    /// Scripts of the mls_client protocol
    Scripts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Handshake {
    /// PrivateMessage
    Private,
    /// PublicMessage
    Public,
    /// One after the other
    Both,
}

#[derive(Debug, Args)]
struct Play {
    /// Only this part; with --peer or --script the scripts alone
    #[arg(long, value_enum)]
    part: Option<Which>,
    /// Only scenarios and scripts whose name holds this
    #[arg(long, default_value = "")]
    only: String,
    /// Members of the large mixed group of the live part; 0: none
    #[arg(long, default_value_t = 200)]
    members: usize,
    /// A server of the mls_client protocol to play with (again for more)
    #[arg(long, value_name = "NAME=HOST:PORT", value_parser = peer)]
    peer: Vec<(String, String)>,
    /// Which of our own servers play too
    #[arg(long, value_enum, default_values = ["openmls", "mls-rs"], num_args = 0..)]
    stack: Vec<Stack>,
    /// A file of scripts instead of ours (again for more)
    #[arg(long, value_name = "FILE")]
    script: Vec<PathBuf>,
    /// Only this cipher suite (again for more)
    #[arg(long)]
    suite: Vec<u16>,
    /// How members frame handshake messages in scripts
    #[arg(long, value_enum, default_value = "both")]
    handshake: Handshake,
    /// The most assignments for a script, suite and handshake
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    cap: u32,
    /// Of drawn assignments and of the random walk
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Steps of the random walk; 0: none
    #[arg(long, default_value_t = 120)]
    walk: usize,
    /// The longest that a step of a script may take, seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    step_timeout: u64,
    /// Write every run as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print the summary object as the last line
    #[arg(long)]
    json: bool,
}

fn peer(text: &str) -> Result<(String, String), String> {
    let (name, address) = text.split_once('=').ok_or("NAME=HOST:PORT")?;
    if name.is_empty() || name == "mixed" || !address.contains(':') {
        return Err("NAME=HOST:PORT".into());
    }
    Ok((name.to_owned(), address.to_owned()))
}

fn say(line: &str) {
    // Nobody may be watching.
    let _gone = writeln!(std::io::stdout(), "{line}");
}

fn tell(run: &Run) {
    match &run.outcome {
        Outcome::Passed => {}
        Outcome::Unsupported(why) => say(&format!("unsupported: {}: {why}", run.title())),
        Outcome::Failed(why) => say(&format!("FAILED: {}: {why}", run.title())),
        Outcome::Unexpected(why) => say(&format!("UNEXPECTED: {}: {why}", run.title())),
    }
}

async fn serve(stack: Stack, listen: SocketAddr) -> anyhow::Result<()> {
    let bound = |address: SocketAddr| say(&format!("{LISTENING}{address}"));
    match stack {
        Stack::Openmls => mls_client::serve(OpenMlsPeer::default(), listen, bound).await,
        Stack::MlsRs => mls_client::serve(MlsRsPeer::default(), listen, bound).await,
    }
}

async fn play_scripts(play: &Play) -> anyhow::Result<Vec<Run>> {
    let wait = Duration::from_secs(play.step_timeout);
    let program = std::env::current_exe()?;
    let own = play.stack.iter().map(|stack| {
        let (program, stack) = (program.clone(), stack.name());
        (stack.to_owned(), Source::Own { program, stack })
    });
    let outside = play.peer.iter().map(|(name, address)| {
        let address = address.clone();
        (name.clone(), Source::Outside { address })
    });
    let mut peers: Vec<Peer> = Vec::new();
    for (name, source) in own.chain(outside) {
        anyhow::ensure!(
            peers.iter().all(|peer| peer.name != name),
            "two peers are called {name}"
        );
        peers.push(Peer::new(&name, source, wait).await?);
    }
    anyhow::ensure!(!peers.is_empty(), "nobody plays: --stack or --peer");
    let mut scripts = Vec::new();
    for path in &play.script {
        let json = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let name = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        scripts.extend(script::read(&name.unwrap_or_default(), &json)?);
    }
    if play.script.is_empty() {
        scripts = play::scripts(play.walk, play.seed)?;
    }
    scripts.retain(|script| script.name.contains(&play.only));
    let options = Options {
        suites: play.suite.clone(),
        handshakes: match play.handshake {
            Handshake::Private => vec![true],
            Handshake::Public => vec![false],
            Handshake::Both => vec![true, false],
        },
        cap: play.cap.try_into()?,
        seed: play.seed,
        wait,
        expect: play.script.is_empty(),
    };
    let played = play::play(&mut peers, &scripts, &options, tell).await?;
    for what in &played.unchecked {
        say(&format!("not compared, the server does not tell: {what}"));
    }
    for (script, chosen, total) in &played.capped {
        let seed = play.seed;
        say(&format!(
            "capped: {script}: {chosen} of {total} assignments, seed {seed}"
        ));
    }
    Ok(played.runs)
}

#[tokio::main]
async fn main() -> ExitCode {
    run(Cli::parse()).await.unwrap_or_else(|error| {
        // Nobody may be watching.
        let _gone = writeln!(std::io::stderr(), "interop: {error:#}");
        ExitCode::from(2)
    })
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Some(Command::Serve { stack, listen }) = cli.command {
        serve(stack, listen).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let play = cli.play;
    let scripts_alone = !play.peer.is_empty() || !play.script.is_empty();
    let plays = |part: Which| {
        play.part
            .map_or(part == Which::Scripts || !scripts_alone, |p| p == part)
    };
    let (mut runs, mut skipped) = (Vec::new(), Vec::new());
    if plays(Which::Live) {
        runs.extend(matrix::play(&play.only, tell).await?);
        if play.members > 1 && large::NAME.contains(&play.only) {
            let run = large::play(play.members).await?;
            tell(&run);
            runs.push(run);
        }
        say(&format!("\n{}", report::table(Part::Live, &runs)));
        skipped = matrix::skipped();
    }
    if plays(Which::Scripts) {
        let played = play_scripts(&play).await?;
        say(&format!("\n{}", report::table(Part::Scripts, &played)));
        runs.extend(played);
    }
    for (stack, why) in &skipped {
        say(&format!("SKIPPED: {stack}: {why}"));
    }
    let mut stacks: Vec<&str> = runs
        .iter()
        .flat_map(|r| r.roles.iter().map(|(_, s)| s.as_str()))
        .collect();
    stacks.sort_unstable();
    stacks.dedup();
    let names: Vec<&str> = skipped.iter().map(|(stack, _)| *stack).collect();
    let summary = report::summary(&runs, stacks.len(), &names);
    if let Some(path) = &play.junit {
        std::fs::write(path, report::junit(&runs)?).with_context(|| path.display().to_string())?;
    }
    if play.json {
        say(&summary.to_string());
    }
    let wrong = summary["failed"] != 0 || summary["unexpected"] != 0;
    Ok(match (wrong, skipped.is_empty()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::SUCCESS,
        // Never silently.
        (false, false) => ExitCode::from(3),
    })
}
