//! The services in this process, on a private PostgreSQL, and invitations to them.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use chancery_proto::auth::v1::{CreateInvitationRequest, admin_service_client::AdminServiceClient};
use clap::Parser;
use hyper_util::rt::TokioIo;
use service_kit::lifecycle::Shutdown;
use single_node::{NodeFile, Options};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::wire::Place;

/// The domain that everybody in a run belongs to.
pub const DOMAIN: &str = "interop.example";
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// Running services.
pub struct World {
    folder: tempfile::TempDir,
    shutdown: Shutdown,
    serving: JoinHandle<anyhow::Result<()>>,
    admin: AdminServiceClient<Channel>,
    /// Where they are.
    pub node: NodeFile,
}

impl World {
    /// Starts everything in a fresh folder.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("chancery-interop-")
            .tempdir()?;
        let data = folder.path().join("server");
        let options = Cli::try_parse_from([
            "single-node",
            "--data",
            &data.to_string_lossy(),
            "--domain",
            DOMAIN,
        ])?
        .options;
        let shutdown = Shutdown::new();
        let serving = tokio::spawn(single_node::run(options, shutdown.clone()));
        let node = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Ok(node) = NodeFile::read(&data) {
                    return Ok(node);
                }
                ensure!(!serving.is_finished(), "the services ended");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .context("the services do not become ready")??;
        let socket = node.auth[0].admin_socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        });
        let channel = Endpoint::from_static("http://admin.invalid")
            .connect_with_connector(connector)
            .await?;
        Ok(Self {
            folder,
            shutdown,
            serving,
            admin: AdminServiceClient::new(channel),
            node,
        })
    }

    /// A new person's invitation code.
    ///
    /// # Errors
    /// The service refuses.
    pub async fn invite(&self, handle: &str) -> anyhow::Result<String> {
        let request = CreateInvitationRequest {
            handle: handle.to_owned(),
            ..CreateInvitationRequest::default()
        };
        let made = self.admin.clone().create_invitation(request).await?;
        Ok(made.into_inner().code)
    }

    /// Where the services are.
    pub fn place(&self) -> Place {
        Place {
            auth_url: self.node.auth[0].url.clone(),
            delivery_url: self.node.delivery_url.clone(),
            ca: None,
        }
    }

    /// A folder for a member's files.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Stops everything.
    ///
    /// # Errors
    /// A service fails while it drains.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.begin();
        self.serving.await?
    }
}
