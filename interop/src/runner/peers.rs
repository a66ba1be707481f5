//! Servers of the protocol: started by this program and started again when they break, or an outsider's at an address.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use crate::mls_client::{
    MAX_BYTES,
    proto::{NameRequest, SupportedCiphersuitesRequest, mls_client_client::MlsClientClient},
};

/// What a server that was started here prints before its address.
pub const LISTENING: &str = "listening on ";

/// Where a server is.
#[derive(Debug, Clone)]
pub enum Source {
    /// Started here: `PROGRAM serve --stack NAME`.
    Own {
        /// This program.
        program: PathBuf,
        /// The library.
        stack: &'static str,
    },
    /// Somebody else's.
    Outside {
        /// `host:port`.
        address: String,
    },
}

/// A server, its name, and what it says it can do.
pub struct Peer {
    /// As reports call it.
    pub name: String,
    /// RFC 9420 section 17.1.
    pub suites: Vec<u16>,
    /// The connection.
    pub client: MlsClientClient<Channel>,
    /// Started here.
    pub own: bool,
    source: Source,
    child: Option<Child>,
}

async fn start(program: &PathBuf, stack: &str) -> anyhow::Result<(Child, String)> {
    let mut child = Command::new(program)
        .args(["serve", "--stack", stack, "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = lines.next_line().await?.context("it ended at once")?;
    let address = line.strip_prefix(LISTENING);
    let address = address.with_context(|| format!("it says {line:?}"))?;
    Ok((child, address.to_owned()))
}

async fn connect(
    source: &Source,
    wait: Duration,
) -> anyhow::Result<(Option<Child>, MlsClientClient<Channel>)> {
    let (child, address) = match source {
        Source::Own { program, stack } => {
            let started = timeout(wait, start(program, stack)).await;
            let (child, address) = started.context("it does not start")??;
            (Some(child), address)
        }
        Source::Outside { address } => (None, address.clone()),
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("{address:?} is no host:port"))?;
    let channel = timeout(wait, endpoint.connect())
        .await
        .context("no connection in time")?
        .with_context(|| format!("cannot connect to {address}"))?;
    let client = MlsClientClient::new(channel)
        .max_decoding_message_size(MAX_BYTES)
        .max_encoding_message_size(MAX_BYTES);
    Ok((child, client))
}

impl Peer {
    /// Starts or connects, and asks what is there.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn new(name: &str, source: Source, wait: Duration) -> anyhow::Result<Self> {
        let (child, mut client) = connect(&source, wait)
            .await
            .with_context(|| format!("peer {name}"))?;
        timeout(wait, client.name(NameRequest {}))
            .await
            .with_context(|| format!("peer {name} does not tell its name in time"))??;
        let suites = timeout(
            wait,
            client.supported_ciphersuites(SupportedCiphersuitesRequest {}),
        )
        .await
        .with_context(|| format!("peer {name} does not tell its suites in time"))??
        .into_inner()
        .ciphersuites;
        ensure!(!suites.is_empty(), "peer {name} has no cipher suites");
        Ok(Self {
            name: name.to_owned(),
            suites: suites
                .into_iter()
                .filter_map(|s| s.try_into().ok())
                .collect(),
            own: matches!(source, Source::Own { .. }),
            client,
            source,
            child,
        })
    }

    /// The process, if it was started here.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// A fresh server after one that broke; an outsider's is connected to again.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn again(&mut self, wait: Duration) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.context("cannot end the broken server")?;
        }
        let (child, client) = connect(&self.source, wait)
            .await
            .with_context(|| format!("peer {}", self.name))?;
        (self.child, self.client) = (child, client);
        Ok(())
    }
}
