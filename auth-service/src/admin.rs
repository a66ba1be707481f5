//! The operator's side, on its own listener. Every change is audited with who asked for it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    auth::v1::{admin_service_server::AdminService, *},
    common::v1::UserRef,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use service_kit::db::Transaction;
use time::OffsetDateTime;
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};
use uuid::Uuid;

use crate::{
    access::{self, Act},
    directory::{next_page_token, page_size, read_page_token, shown},
    enroll::code_hash,
    error::{Error, status},
    feed::micros,
    names,
    node::Node,
    revocations,
    store::{self, users::User as StoredUser},
};

/// The operator's service on one node.
#[derive(Debug, Clone)]
pub struct Admin {
    node: Node,
}

/// Who asked: the account at the other end of the unix socket.
fn actor<T>(request: &Request<T>) -> String {
    let peer = request.extensions().get::<UdsConnectInfo>();
    match peer.and_then(|peer| peer.peer_cred) {
        Some(account) => format!("uid:{}", account.uid()),
        None => "operator".to_owned(),
    }
}

fn later<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{what} is not served yet")))
}

impl Admin {
    /// Serves this node.
    pub fn new(node: Node) -> Self {
        Self { node }
    }

    fn new_user(&self, handle: &str, name: &str, organisation: &str) -> Result<StoredUser, Error> {
        let max = self.node.config.limits.name_bytes;
        let (handle, name, organisation) = (handle.trim(), name.trim(), organisation.trim());
        for text in [handle, name, organisation] {
            Error::within("name_bytes", max, text.len())?;
        }
        let handle_key = names::handle_key(handle)?;
        let name = names::shown("display_name", name)?;
        Ok(StoredUser {
            id: Uuid::new_v4(),
            handle: handle.to_owned(),
            handle_key,
            display_name: if name.is_empty() {
                handle.to_owned()
            } else {
                name
            },
            organisation: names::shown("organisation", organisation)?,
            suspended: false,
        })
    }

    async fn change<T>(
        &self,
        request: &Request<T>,
        user: Option<UserRef>,
        act: Act,
    ) -> Result<u64, Status> {
        let user = access::user_id(&self.node, user.as_ref()).map_err(status)?;
        access::change(&self.node, user, act, actor(request))
            .await
            .map_err(status)
    }

    async fn invite(
        &self,
        actor: String,
        request: CreateInvitationRequest,
    ) -> Result<CreateInvitationResponse, Error> {
        let config = &self.node.config;
        let seconds = match request.valid_seconds {
            0 => config.invitation_lifetime_seconds.into(),
            seconds => seconds,
        };
        Error::within(
            "invitation_seconds",
            config.limits.invitation_seconds,
            usize::try_from(seconds).unwrap_or(usize::MAX),
        )?;
        let user = self.new_user(
            &request.handle,
            &request.display_name,
            &request.organisation,
        )?;
        let rename = !request.display_name.trim().is_empty();
        let mut code = [0; 16];
        SystemRandom::new()
            .fill(&mut code)
            .map_err(|_| Error::Internal("no randomness".into()))?;
        // Hex: a code must survive a command line, and one that began with a dash would be taken for an option.
        let code = Uuid::from_bytes(code).simple().to_string();
        let hash = code_hash(&code);
        let (id, expires_at) = self
            .node
            .db
            .run_tx("create_invitation", move |tx| {
                let (user, actor) = (user.clone(), actor.clone());
                Box::pin(async move {
                    Ok(invite_in_tx(tx, &actor, &user, rename, &hash, seconds).await?)
                })
            })
            .await?;
        Ok(CreateInvitationResponse {
            code,
            user: Some(UserRef {
                domain: config.domain.clone(),
                id: id.as_bytes().to_vec().into(),
            }),
            expires_at: expires_at.unix_timestamp(),
        })
    }

    async fn import(
        &self,
        actor: String,
        request: ImportUsersRequest,
    ) -> Result<ImportUsersResponse, Error> {
        let max = self.node.config.limits.users_items;
        Error::within("users_items", max, request.users.len())?;
        let users = request
            .users
            .iter()
            .map(|u| self.new_user(&u.handle, &u.display_name, &u.organisation))
            .collect::<Result<Vec<_>, _>>()?;
        let answer = self
            .node
            .db
            .run_tx("import_users", move |tx| {
                let (users, actor) = (users.clone(), actor.clone());
                Box::pin(async move {
                    let mut answer = ImportUsersResponse::default();
                    for user in &users {
                        let (id, new) = store::users::upsert(tx, user).await?;
                        *(if new {
                            &mut answer.created
                        } else {
                            &mut answer.updated
                        }) += 1;
                        store::feed::audit(tx, &actor, "import", &format!("user:{id}")).await?;
                    }
                    Ok::<_, service_kit::db::TxError<Error>>(answer)
                })
            })
            .await?;
        Ok(answer)
    }

    async fn invitations(
        &self,
        request: ListInvitationsRequest,
    ) -> Result<ListInvitationsResponse, Error> {
        let size = page_size(&self.node, request.page_size)?;
        let after = read_list_token(&request.page_token)?;
        let client = self.node.db.client().await?;
        let found = store::invitations::list(&client, after, size).await?;
        let next_page_token = match found.last() {
            Some(last) if i64::try_from(found.len()) == Ok(size) => {
                let mut token = micros(last.created_at).to_be_bytes().to_vec();
                token.extend_from_slice(&last.code_hash);
                URL_SAFE_NO_PAD.encode(token)
            }
            _ => String::new(),
        };
        let domain = &self.node.config.domain;
        let invitations = found.into_iter().map(|found| Invitation {
            user: Some(UserRef {
                domain: domain.clone(),
                id: found.user.as_bytes().to_vec().into(),
            }),
            handle: found.handle,
            created_at: found.created_at.unix_timestamp(),
            expires_at: found.expires_at.unix_timestamp(),
            used_at: found.used_at.map_or(0, OffsetDateTime::unix_timestamp),
        });
        Ok(ListInvitationsResponse {
            invitations: invitations.collect(),
            next_page_token,
        })
    }

    async fn users(&self, request: ListUsersRequest) -> Result<ListUsersResponse, Error> {
        let size = page_size(&self.node, request.page_size)?;
        let after = read_page_token(&request.page_token)?;
        let client = self.node.db.client().await?;
        let users = store::users::list(&client, &after, size).await?;
        Ok(ListUsersResponse {
            next_page_token: next_page_token(&users, size),
            users: users
                .into_iter()
                .map(|user| shown(&self.node.config.domain, user))
                .collect(),
        })
    }

    async fn audit(&self, request: ListAuditRequest) -> Result<ListAuditResponse, Error> {
        let size = page_size(&self.node, request.page_size)?;
        let client = self.node.db.client().await?;
        let lines = store::feed::audit_after(&client, request.after_seq, size).await?;
        let entries = lines.into_iter().map(|line| AuditEntry {
            seq: line.seq,
            at_micros: micros(line.at),
            actor: line.actor,
            action: line.action,
            subject: line.subject,
        });
        Ok(ListAuditResponse {
            entries: entries.collect(),
        })
    }
}

async fn invite_in_tx(
    tx: &Transaction<'_>,
    actor: &str,
    user: &StoredUser,
    rename: bool,
    code_hash: &[u8],
    seconds: u64,
) -> Result<(Uuid, OffsetDateTime), Error> {
    let known = store::users::by_handle(tx, &user.handle_key).await?;
    let id = match known {
        Some(known) if !rename => known.id,
        _ => store::users::upsert(tx, user).await?.0,
    };
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).into();
    let expires_at = store::invitations::insert(tx, code_hash, id, seconds).await?;
    store::feed::audit(tx, actor, "invite", &format!("user:{id}")).await?;
    Ok((id, expires_at))
}

fn read_list_token(token: &str) -> Result<Option<(OffsetDateTime, Vec<u8>)>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = || Error::malformed("page_token", "not one of this list");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let (at, hash) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
    let nanos = i128::from(i64::from_be_bytes(*at)) * 1_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(|_| bad())?;
    Ok(Some((at, hash.to_vec())))
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn create_invitation(
        &self,
        request: Request<CreateInvitationRequest>,
    ) -> Result<Response<CreateInvitationResponse>, Status> {
        let actor = actor(&request);
        let answer = self.invite(actor, request.into_inner()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn list_invitations(
        &self,
        request: Request<ListInvitationsRequest>,
    ) -> Result<Response<ListInvitationsResponse>, Status> {
        let answer = self.invitations(request.into_inner()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn import_users(
        &self,
        request: Request<ImportUsersRequest>,
    ) -> Result<Response<ImportUsersResponse>, Status> {
        let actor = actor(&request);
        let answer = self.import(actor, request.into_inner()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        let answer = self.users(request.into_inner()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn suspend_user(
        &self,
        request: Request<SuspendUserRequest>,
    ) -> Result<Response<SuspendUserResponse>, Status> {
        let user = request.get_ref().user.clone();
        let seq = self.change(&request, user, Act::Suspend).await?;
        Ok(Response::new(SuspendUserResponse { seq }))
    }

    async fn reinstate_user(
        &self,
        request: Request<ReinstateUserRequest>,
    ) -> Result<Response<ReinstateUserResponse>, Status> {
        let user = request.get_ref().user.clone();
        let seq = self.change(&request, user, Act::Reinstate).await?;
        Ok(Response::new(ReinstateUserResponse { seq }))
    }

    async fn delete_user(
        &self,
        request: Request<DeleteUserRequest>,
    ) -> Result<Response<DeleteUserResponse>, Status> {
        let user = request.get_ref().user.clone();
        let seq = self.change(&request, user, Act::Delete).await?;
        Ok(Response::new(DeleteUserResponse { seq }))
    }

    async fn admin_revoke_device(
        &self,
        request: Request<AdminRevokeDeviceRequest>,
    ) -> Result<Response<AdminRevokeDeviceResponse>, Status> {
        let actor = actor(&request);
        let device = revocations::device_id(&self.node, request.get_ref().device.as_ref())
            .map_err(status)?;
        let seq = revocations::revoke(&self.node, device, actor)
            .await
            .map_err(status)?;
        Ok(Response::new(AdminRevokeDeviceResponse { seq }))
    }

    async fn rotate_token_key(
        &self,
        _request: Request<RotateTokenKeyRequest>,
    ) -> Result<Response<RotateTokenKeyResponse>, Status> {
        later("RotateTokenKey")
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let answer = self.audit(request.into_inner()).await;
        answer.map(Response::new).map_err(status)
    }
}
