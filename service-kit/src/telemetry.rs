//! Logs on stderr: for people, or JSON for machines. No payloads, no secrets, no personal data.
//!
//! Logging is best effort. Whoever logs puts a line into a bounded queue and goes on; a thread of its own writes to
//! stderr. A stderr that is closed, full, or a pipe that nobody reads costs lines, which are counted, and nothing else.

mod queue;

use std::{
    io::IsTerminal as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use tracing_subscriber::EnvFilter;

use queue::LogQueue;

/// How long a program that ends waits for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct LogOptions {
    /// The form of the log lines on stderr.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_LOG_FORMAT",
        default_value = "human"
    )]
    pub log_format: LogFormat,
    /// Which log lines are written, such as `info` or `delivery_service=debug`.
    #[arg(long, global = true, env = "CHANCERY_LOG", default_value = "info")]
    pub log: String,
    /// Log lines that wait to be written, at most; more are dropped and counted.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_LOG_QUEUE_ITEMS",
        default_value_t = 4_096
    )]
    pub log_queue_items: usize,
}

/// Log lines that could not be written, since the process began.
pub fn lines_dropped() -> u64 {
    queue::dropped()
}

/// Runs a program with logging and gives its exit status: what `work` fails with is written as the last line.
pub fn run(options: &LogOptions, work: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let queue = LogQueue::to_stderr(options.log_queue_items);
    let ended = init(options, &queue).and_then(|()| work());
    let code = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            queue.put(format!("Error: {error:?}\n").into_bytes());
            ExitCode::FAILURE
        }
    };
    queue.wait_until_written(Instant::now() + LAST_LINES);
    code
}

/// Starts logging, of panics too.
fn init(options: &LogOptions, queue: &LogQueue) -> anyhow::Result<()> {
    let colours = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&options.log)?)
        .with_ansi(colours)
        // It would be written to stderr at once, and panic where that fails.
        .log_internal_errors(false)
        .with_writer(queue.clone());
    let started = match options.log_format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // The default hook writes to stderr itself, and waits for a reader.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), "{panic}");
    }));
    started.map_err(|error| anyhow::anyhow!("logging: {error}"))
}
