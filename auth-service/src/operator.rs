//! The operator's commands: each speaks to the admin listener and prints JSON.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use chancery_proto::{
    auth::v1::{
        AdminRevokeDeviceRequest, CreateInvitationRequest, DeleteUserRequest, ImportUsersRequest,
        ListAuditRequest, ListInvitationsRequest, ListUsersRequest, ReinstateUserRequest,
        SuspendUserRequest, User, admin_service_client::AdminServiceClient,
    },
    certificate,
    command_line::{read_text, write_json_line},
    common::v1::{DeviceRef, UserRef},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use service_kit::listen::ListenAddr;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::{
    migration::{Renamed, Why},
    names,
};

/// Where the admin listener is.
#[derive(Debug, Clone, clap::Args)]
pub struct Target {
    /// Address of the admin listener: `unix:/path` or `IP:PORT`.
    #[arg(
        long,
        env = "CHANCERY_AS_ADMIN",
        default_value = "unix:/run/chancery/auth-admin.sock"
    )]
    pub admin: ListenAddr,
}

/// `auth-service invite …`
#[derive(Debug, clap::Subcommand)]
pub enum Invite {
    /// Makes an invitation for one person; prints the code, once.
    Create {
        /// The service.
        #[command(flatten)]
        target: Target,
        /// The person's unique handle, for example an e-mail address.
        #[arg(long)]
        handle: String,
        /// The name shown to others; a new person without one is shown by handle.
        #[arg(long, default_value = "")]
        name: String,
        /// The organisation shown to others.
        #[arg(long, default_value = "")]
        organisation: String,
        /// How long the code works; the service's default when 0.
        #[arg(long, default_value_t = 0)]
        valid_seconds: u64,
    },
    /// Lists invitations; no codes.
    List {
        /// The service.
        #[command(flatten)]
        target: Target,
    },
}

/// `auth-service users …`
#[derive(Debug, clap::Subcommand)]
pub enum Users {
    /// Lists everybody.
    List {
        /// The service.
        #[command(flatten)]
        target: Target,
    },
    /// Creates or renames people from a file of JSON lines: `{"handle":…,"display_name":…,"organisation":…}`.
    Import {
        /// The service.
        #[command(flatten)]
        target: Target,
        /// The file; `-` is stdin.
        file: PathBuf,
        /// The most bytes that are read of it.
        #[arg(long, env = "CHANCERY_AS_MAX_INPUT_BYTES", default_value_t = 64 << 20)]
        max_input_bytes: u64,
    },
    /// Cuts a person off, for a while: tokens, requests and streams end, nothing is removed.
    Suspend(Person),
    /// Lets a suspended person in again.
    Reinstate(Person),
    /// Ends a person for ever: every device is removed from its groups, the names go.
    Delete(Person),
}

/// One person.
#[derive(Debug, clap::Args)]
pub struct Person {
    #[command(flatten)]
    target: Target,
    /// `mimi://<domain>/u/<uuid>`, as `users list` prints it.
    user: String,
}

/// `auth-service devices …`
#[derive(Debug, clap::Subcommand)]
pub enum Devices {
    /// Revokes a device, for ever.
    Revoke {
        /// The service.
        #[command(flatten)]
        target: Target,
        /// `mimi://<domain>/d/<uuid>`.
        device: String,
    },
}

/// `auth-service audit`
#[derive(Debug, clap::Args)]
pub struct Audit {
    #[command(flatten)]
    target: Target,
    /// Only lines after this one.
    #[arg(long, default_value_t = 0)]
    after: u64,
}

const PAGE: u32 = 200;
const IMPORT_PART: usize = 500;

/// Connects to an admin listener.
///
/// # Errors
/// There is none at this address.
pub async fn connect(admin: &ListenAddr) -> anyhow::Result<AdminServiceClient<Channel>> {
    let channel = match admin.clone() {
        ListenAddr::Tcp(addr) => {
            Endpoint::from_shared(format!("http://{addr}"))?
                .connect()
                .await
        }
        ListenAddr::Unix(path) => {
            let connector = tower::service_fn(move |_| {
                let path = path.clone();
                async move {
                    tokio::net::UnixStream::connect(path)
                        .await
                        .map(TokioIo::new)
                }
            });
            Endpoint::from_static("http://admin.invalid")
                .connect_with_connector(connector)
                .await
        }
    };
    let channel = channel.with_context(|| format!("no admin listener at {admin}"))?;
    Ok(AdminServiceClient::new(channel))
}

fn print(value: &Value) -> anyhow::Result<()> {
    write_json_line(&mut std::io::stdout().lock(), value)
        .context("it was done, and the answer cannot be printed")
}

/// Prints who has another handle since a migration, one on each line, and on stderr what to do.
///
/// # Errors
/// Stdout's.
pub fn renamed(renamed: &[Renamed]) -> anyhow::Result<()> {
    for person in renamed {
        let (why, held_by) = match person.why {
            Why::HeldBy(user) => ("held_by_another", Some(user)),
            Why::NotAllowed => ("not_allowed", None),
        };
        print(&json!({ "renamed": {
            "user_id": person.user, "former_handle": person.former_handle, "handle": person.handle, "why": why, "held_by": held_by,
        }}))?;
    }
    if !renamed.is_empty() {
        tracing::warn!(
            people = renamed.len(),
            "handles that were equal in another spelling, or not allowed: the oldest person keeps the handle, each other one is invited by the handle that is \
             printed for them; nobody lost a device or a group"
        );
    }
    Ok(())
}

fn user_uri(user: Option<&UserRef>) -> String {
    user.and_then(|user| {
        Some(certificate::user_uri(
            &user.domain,
            Uuid::from_slice(&user.id).ok()?,
        ))
    })
    .unwrap_or_default()
}

/// Runs `invite`.
///
/// # Errors
/// No connection, or the service's refusal.
pub async fn invite(command: Invite) -> anyhow::Result<()> {
    match command {
        Invite::Create {
            target,
            handle,
            name,
            organisation,
            valid_seconds,
        } => {
            let request = CreateInvitationRequest {
                handle,
                display_name: name,
                organisation,
                valid_seconds,
            };
            let made = connect(&target.admin)
                .await?
                .create_invitation(request)
                .await?
                .into_inner();
            let user = user_uri(made.user.as_ref());
            print(&json!({ "code": made.code, "user": user, "expires_at": made.expires_at }))
        }
        Invite::List { target } => {
            let mut client = connect(&target.admin).await?;
            let mut page_token = String::new();
            loop {
                let request = ListInvitationsRequest {
                    page_size: PAGE,
                    page_token,
                };
                let page = client.list_invitations(request).await?.into_inner();
                for invitation in page.invitations {
                    print(&json!({
                        "user": user_uri(invitation.user.as_ref()),
                        "handle": invitation.handle,
                        "created_at": invitation.created_at,
                        "expires_at": invitation.expires_at,
                        "used_at": (invitation.used_at != 0).then_some(invitation.used_at),
                    }))?;
                }
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return Ok(());
                }
            }
        }
    }
}

/// Runs `users`.
///
/// # Errors
/// No connection, the service's refusal, or a line that cannot be read.
pub async fn users(command: Users) -> anyhow::Result<()> {
    match command {
        Users::List { target } => {
            let mut client = connect(&target.admin).await?;
            let mut page_token = String::new();
            loop {
                let request = ListUsersRequest {
                    page_size: PAGE,
                    page_token,
                };
                let page = client.list_users(request).await?.into_inner();
                for user in page.users {
                    print(&json!({
                        "user": user_uri(user.user.as_ref()),
                        "handle": user.handle,
                        "display_name": user.display_name,
                        "organisation": user.organisation,
                        "suspended": user.suspended,
                    }))?;
                }
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return Ok(());
                }
            }
        }
        Users::Import {
            target,
            file,
            max_input_bytes,
        } => {
            let people = read_people(&file, max_input_bytes)?;
            let mut client = connect(&target.admin).await?;
            let (mut created, mut updated) = (0, 0);
            for users in people.chunks(IMPORT_PART) {
                let request = ImportUsersRequest {
                    users: users.to_vec(),
                };
                let done = client.import_users(request).await?.into_inner();
                created += done.created;
                updated += done.updated;
            }
            print(&json!({ "created": created, "updated": updated }))
        }
        Users::Suspend(person) => {
            let (mut client, user) = person.connect().await?;
            let request = SuspendUserRequest { user };
            let seq = client.suspend_user(request).await?.into_inner().seq;
            print(&json!({ "user": person.user, "seq": seq }))
        }
        Users::Reinstate(person) => {
            let (mut client, user) = person.connect().await?;
            let request = ReinstateUserRequest { user };
            let seq = client.reinstate_user(request).await?.into_inner().seq;
            print(&json!({ "user": person.user, "seq": seq }))
        }
        Users::Delete(person) => {
            let (mut client, user) = person.connect().await?;
            let request = DeleteUserRequest { user };
            let seq = client.delete_user(request).await?.into_inner().seq;
            print(&json!({ "user": person.user, "seq": seq }))
        }
    }
}

impl Person {
    async fn connect(&self) -> anyhow::Result<(AdminServiceClient<Channel>, Option<UserRef>)> {
        let (domain, id) = named(&self.user, "u")?;
        Ok((
            connect(&self.target.admin).await?,
            Some(UserRef { domain, id }),
        ))
    }
}

/// Domain and id of `mimi://<domain>/<kind>/<uuid>`.
fn named(uri: &str, kind: &str) -> anyhow::Result<(String, bytes::Bytes)> {
    let (domain, id) = uri
        .strip_prefix("mimi://")
        .and_then(|rest| rest.split_once(&format!("/{kind}/")))
        .with_context(|| format!("{uri:?} is not written mimi://<domain>/{kind}/<uuid>"))?;
    ensure!(!domain.is_empty(), "the domain is empty");
    let id = id.parse::<Uuid>()?.as_bytes().to_vec().into();
    Ok((domain.to_owned(), id))
}

/// Every line is read and looked at before the first is sent.
fn read_people(file: &Path, max: u64) -> anyhow::Result<Vec<User>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Person {
        handle: String,
        #[serde(default)]
        display_name: String,
        #[serde(default)]
        organisation: String,
    }
    let text = read_text(file, max)?;
    let lines = text.lines().enumerate();
    let people = lines.filter(|(_, line)| !line.trim().is_empty());
    people
        .map(|(index, line)| {
            let place = || format!("{}, line {}", file.display(), index + 1);
            let person: Person = serde_json::from_str(line).with_context(place)?;
            let names = [
                names::handle_key(&person.handle),
                names::shown("display_name", &person.display_name),
                names::shown("organisation", &person.organisation),
            ];
            for name in names {
                name.with_context(place)?;
            }
            Ok(User {
                handle: person.handle,
                display_name: person.display_name,
                organisation: person.organisation,
                ..User::default()
            })
        })
        .collect()
}

/// Runs `devices`.
///
/// # Errors
/// No connection, or the service's refusal.
pub async fn devices(command: Devices) -> anyhow::Result<()> {
    let Devices::Revoke { target, device } = command;
    let (domain, id) = named(&device, "d")?;
    let request = AdminRevokeDeviceRequest {
        device: Some(DeviceRef { domain, id }),
    };
    let done = connect(&target.admin)
        .await?
        .admin_revoke_device(request)
        .await?
        .into_inner();
    print(&json!({ "device": device, "seq": done.seq }))
}

/// Runs `audit`.
///
/// # Errors
/// No connection, or the service's refusal.
pub async fn audit(command: Audit) -> anyhow::Result<()> {
    let mut client = connect(&command.target.admin).await?;
    let mut after_seq = command.after;
    loop {
        let request = ListAuditRequest {
            after_seq,
            page_size: PAGE,
        };
        let page = client.list_audit(request).await?.into_inner();
        let Some(last) = page.entries.last() else {
            return Ok(());
        };
        after_seq = last.seq;
        for entry in page.entries {
            print(&json!({
                "seq": entry.seq, "at_micros": entry.at_micros, "actor": entry.actor,
                "action": entry.action, "subject": entry.subject,
            }))?;
        }
    }
}
