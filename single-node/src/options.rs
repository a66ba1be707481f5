//! The options of `single-node up`.

use std::path::PathBuf;

use anyhow::ensure;
use service_kit::listen::ListenAddr;

/// Runs PostgreSQL and both services in one process.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The folder that holds everything; made when it is missing.
    #[arg(long, env = "CHANCERY_NODE_DATA", default_value = "data")]
    pub data: PathBuf,
    /// A domain to vouch for, with an Authentication Service of its own; groups are ordered for the first. Repeatable.
    #[arg(
        long = "domain",
        env = "CHANCERY_NODE_DOMAINS",
        value_delimiter = ',',
        default_value = "localhost"
    )]
    pub domains: Vec<String>,
    /// Where the Authentication Service of the domain in the same place listens. Port 0: any free port, the same one again after a restart if it is still free. Repeatable.
    #[arg(
        long = "listen-auth",
        env = "CHANCERY_NODE_LISTEN_AUTH",
        value_delimiter = ',',
        default_value = "127.0.0.1:0"
    )]
    pub listen_auth: Vec<ListenAddr>,
    /// Where the Delivery Service listens; port 0 as above.
    #[arg(
        long,
        env = "CHANCERY_NODE_LISTEN_DELIVERY",
        default_value = "127.0.0.1:0"
    )]
    pub listen_delivery: ListenAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; nowhere when absent.
    #[arg(long, env = "CHANCERY_NODE_LISTEN_OPS")]
    pub listen_ops: Option<ListenAddr>,
    /// Where PostgreSQL's initdb and postgres are; searched when absent.
    #[arg(long, env = "CHANCERY_PG_BIN")]
    pub pg_bin: Option<PathBuf>,
    /// A setting of PostgreSQL, `NAME=VALUE`. Repeatable.
    #[arg(long = "postgres-setting", value_parser = setting)]
    pub postgres_settings: Vec<(String, String)>,
    /// Prints the commands to type next once everything answers.
    #[arg(long)]
    pub hints: bool,
}

impl Options {
    /// Checks what no single option can say.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.domains.is_empty(), "at least one --domain is needed");
        for (place, domain) in self.domains.iter().enumerate() {
            ensure!(
                !self.domains[..place].contains(domain),
                "--domain {domain} is named twice"
            );
        }
        ensure!(
            self.listen_auth.len() <= self.domains.len(),
            "there are more --listen-auth than --domain"
        );
        Ok(())
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}
