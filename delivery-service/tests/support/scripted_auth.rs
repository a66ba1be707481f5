//! An Authentication Service that says what a test wants: its status feed may lose its past, stand still, or hold what nobody knows yet.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    auth::v1::{
        auth_service_server::{AuthService, AuthServiceServer},
        device_status::Subject,
        signed_status::Content,
        *,
    },
    common::v1::{DeviceRef, Reason, UserRef},
    signed, status,
};
use futures_util::Stream;
use prost::Message as _;
use ring::signature::Ed25519KeyPair;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::forge::{Authority, DOMAIN};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How often a running feed looks at the script.
const LOOK: Duration = Duration::from_millis(50);

/// What the service says.
pub struct Script {
    /// The feed, as it was signed.
    pub items: Vec<SignedStatus>,
    /// The feed's history, of what is signed from here on.
    pub history: [u8; 16],
    /// Sent in place of every heartbeat, and nothing else is sent then.
    pub replayed: Option<SignedStatus>,
    /// Whether items and heartbeats name items by their hashes, and cursors are compared.
    pub chains: bool,
    pub info: GetServiceInfoResponse,
    signer: (Ed25519KeyPair, Vec<Vec<u8>>),
}

impl Script {
    fn bytes(&self, place: usize) -> Vec<u8> {
        match &self.items[place].content {
            Some(Content::Status(bytes)) => bytes.to_vec(),
            _ => panic!("no status"),
        }
    }

    fn hash(&self, seq: usize) -> Vec<u8> {
        match seq {
            0 => Vec::new(),
            seq => signed::status_sha256(&self.bytes(seq - 1)).to_vec(),
        }
    }

    fn sign(&self, label: &str, content: Vec<u8>, status: bool) -> SignedStatus {
        let signature = self.signer.0.sign(&signed::to_be_signed(label, &content));
        let content = match status {
            true => Content::Status(content.into()),
            false => Content::Heartbeat(content.into()),
        };
        SignedStatus {
            content: Some(content),
            signature: signature.as_ref().to_vec().into(),
            chain: self.signer.1.iter().map(|der| der.clone().into()).collect(),
        }
    }

    /// Signs one more item.
    pub fn say(&mut self, change: i32, subject: Option<Subject>) {
        let seq = self.items.len() + 1;
        let previous = if self.chains {
            self.hash(seq - 1)
        } else {
            Vec::new()
        };
        let status = DeviceStatus {
            seq: seq as u64,
            subject,
            change,
            at_micros: now_micros(),
            history_id: self.history.to_vec().into(),
            previous_sha256: previous.into(),
            ..DeviceStatus::default()
        };
        let item = self.sign(signed::STATUS, status.encode_to_vec(), true);
        self.items.push(item);
    }

    pub fn revoke(&mut self, device: Uuid) {
        self.say(StatusChange::Revoked.into(), Some(of_device(device)));
    }

    /// What a heartbeat says now.
    pub fn heartbeat(&self) -> SignedStatus {
        self.heartbeat_at(0)
    }

    /// What a heartbeat says so many seconds from now.
    pub fn heartbeat_at(&self, seconds: i64) -> SignedStatus {
        let seq = self.items.len();
        let heartbeat = StatusHeartbeat {
            seq: seq as u64,
            time_micros: now_micros() + seconds * 1_000_000,
            history_id: self.history.to_vec().into(),
            item_sha256: if self.chains {
                self.hash(seq).into()
            } else {
                Default::default()
            },
        };
        self.sign(signed::HEARTBEAT, heartbeat.encode_to_vec(), false)
    }

    fn fits(&self, request: &WatchDeviceStatusRequest) -> bool {
        let seq = usize::try_from(request.after_seq).unwrap();
        let history = request.history_id.is_empty() || request.history_id == self.history[..];
        let there = seq <= self.items.len();
        let named = request.item_sha256.is_empty() || !self.chains;
        history && there && (named || self.hash(seq) == request.item_sha256)
    }
}

fn now_micros() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000).unwrap()
}

pub fn of_device(device: Uuid) -> Subject {
    Subject::Device(DeviceRef {
        domain: DOMAIN.into(),
        id: device.as_bytes().to_vec().into(),
    })
}

pub fn of_user(user: Uuid) -> Subject {
    Subject::User(UserRef {
        domain: DOMAIN.into(),
        id: user.as_bytes().to_vec().into(),
    })
}

/// What an authority's service says of itself.
pub fn service_info(authority: &Authority) -> GetServiceInfoResponse {
    let x = URL_SAFE_NO_PAD.encode(&authority.token_key);
    let certificate = |der: &[u8]| CertificateInfo {
        der: der.to_vec().into(),
        ..CertificateInfo::default()
    };
    GetServiceInfoResponse {
        domain: DOMAIN.into(),
        token_keys_jwks: format!(
            r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","x":"{x}"}}]}}"#
        ),
        roots: vec![certificate(&authority.root_der)],
        intermediates: vec![certificate(&authority.intermediate_der)],
        ..GetServiceInfoResponse::default()
    }
}

/// The service, running; ends with the value.
pub struct ScriptedAuth {
    script: Arc<Mutex<Script>>,
    pub url: String,
    served: tokio::task::JoinHandle<()>,
}

impl Drop for ScriptedAuth {
    fn drop(&mut self) {
        self.served.abort();
    }
}

impl ScriptedAuth {
    pub async fn start(authority: &Authority) -> Self {
        let script = Arc::new(Mutex::new(Script {
            items: Vec::new(),
            history: [1; 16],
            replayed: None,
            chains: true,
            info: service_info(authority),
            signer: authority.status_signer(),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = AuthServiceServer::new(Scripted(script.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        let served = service_kit::lifecycle::spawn_short(async move {
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            script,
            url,
            served,
        }
    }

    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Another authority takes its place.
    pub fn becomes(&self, authority: &Authority) {
        let mut script = self.script();
        script.info = service_info(authority);
        script.signer = authority.status_signer();
    }
}

struct Scripted(Arc<Mutex<Script>>);

async fn feed(
    script: Arc<Mutex<Script>>,
    mut cursor: usize,
    sink: mpsc::Sender<Result<WatchDeviceStatusResponse, Status>>,
) {
    let mut beats = 0;
    loop {
        let items = {
            let script = script.lock().unwrap();
            match &script.replayed {
                Some(replayed) => vec![replayed.clone()],
                None => {
                    let mut items: Vec<_> = script.items.iter().skip(cursor).cloned().collect();
                    cursor += items.len();
                    // Ten looks, and with what is new.
                    if beats % 10 == 0 {
                        items.push(script.heartbeat());
                    }
                    items
                }
            }
        };
        beats += 1;
        let part = WatchDeviceStatusResponse {
            items,
            caught_up: false,
        };
        if sink.send(Ok(part)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

macro_rules! not_here {
    ($($name:ident($request:ty) -> $response:ty),* $(,)?) => {
        #[tonic::async_trait]
        impl AuthService for Scripted {
            type GetDevicesStream = Answers<GetDevicesResponse>;
            type WatchDeviceStatusStream = Answers<WatchDeviceStatusResponse>;

            async fn get_service_info(
                &self,
                _request: Request<GetServiceInfoRequest>,
            ) -> Result<Response<GetServiceInfoResponse>, Status> {
                Ok(Response::new(self.0.lock().unwrap().info.clone()))
            }

            async fn watch_device_status(
                &self,
                request: Request<WatchDeviceStatusRequest>,
            ) -> Result<Response<Self::WatchDeviceStatusStream>, Status> {
                let request = request.into_inner();
                let fits = self.0.lock().unwrap().fits(&request);
                if !fits {
                    return Err(status::refusal(Reason::HistoryChanged, "another past", []));
                }
                let (sink, stream) = mpsc::channel(1);
                let cursor = usize::try_from(request.after_seq).unwrap();
                service_kit::lifecycle::spawn_short(feed(self.0.clone(), cursor, sink));
                Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
            }

            $(async fn $name(&self, _request: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented("not in the script"))
            })*
        }
    };
}

not_here!(
    enroll(EnrollRequest) -> EnrollResponse,
    issue_token(IssueTokenRequest) -> IssueTokenResponse,
    renew_certificate(RenewCertificateRequest) -> RenewCertificateResponse,
    search_directory(SearchDirectoryRequest) -> SearchDirectoryResponse,
    get_users(GetUsersRequest) -> GetUsersResponse,
    get_devices(GetDevicesRequest) -> Self::GetDevicesStream,
    revoke_device(RevokeDeviceRequest) -> RevokeDeviceResponse,
    check_certificate(CheckCertificateRequest) -> CheckCertificateResponse,
);
