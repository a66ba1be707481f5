//! The network between devices and services, inside one process: requests are lost, answers are lost, both are late, some requests come twice. What
//! travels is real gRPC over pipes of memory.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chancery_proto::{
    auth::v1::{
        IssueTokenRequest, IssueTokenResponse,
        auth_service_server::{AuthService, AuthServiceServer},
    },
    delivery::v1::{
        delivery_service_server::{DeliveryService, DeliveryServiceServer},
        *,
    },
    token::{self, AssertionClaims},
};
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};
use uuid::Uuid;

use super::{
    clock::Clock,
    service::{Service, Who},
};

const PIPE_BYTES: usize = 1 << 20;

/// How often what happened, by name.
pub type Counts = BTreeMap<&'static str, u64>;

/// What may go wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    RequestLost,
    AnswerLost,
    Twice,
}

/// The network.
#[derive(Debug, Clone)]
pub struct Network {
    service: Arc<Service>,
    clock: Clock,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    random: fastrand::Rng,
    /// Calls of a hundred that go wrong.
    bad_percent: u8,
    /// Who each device belongs to.
    users: BTreeMap<Uuid, Uuid>,
    /// Devices whose next Commit is spoilt on its way.
    spoil: Vec<Uuid>,
    counts: Counts,
}

impl Network {
    /// A good one, until it is made bad.
    pub fn new(service: Arc<Service>, clock: Clock, seed: u64) -> Self {
        Self {
            service,
            clock,
            shared: Arc::new(Mutex::new(Shared {
                random: fastrand::Rng::with_seed(seed),
                bad_percent: 0,
                users: BTreeMap::new(),
                spoil: Vec::new(),
                counts: Counts::new(),
            })),
        }
    }

    fn shared<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        work(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many calls of a hundred go wrong from now on.
    pub fn set_bad_percent(&self, percent: u8) {
        self.shared(|shared| shared.bad_percent = percent);
    }

    /// No Commit is spoilt any more.
    pub fn calm(&self) {
        self.shared(|shared| shared.spoil.clear());
    }

    /// The next Commit of this device is spoilt: of the right form, and nobody can open it.
    pub fn spoil(&self, device: Uuid) {
        self.shared(|shared| shared.spoil.push(device));
    }

    /// Makes a device known to the Authentication Service.
    pub fn know(&self, who: Who) {
        self.shared(|shared| shared.users.insert(who.device, who.user));
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.shared(|shared| shared.counts.clone())
    }

    /// A channel to both services.
    ///
    /// # Errors
    /// The server's end cannot be made.
    pub fn channel(&self) -> anyhow::Result<Channel> {
        let (pipes, incoming) = mpsc::unbounded_channel::<std::io::Result<DuplexStream>>();
        let server = Server::builder()
            .add_service(
                DeliveryServiceServer::new(self.clone()).max_decoding_message_size(1 << 26),
            )
            .add_service(AuthServiceServer::new(self.clone()))
            .serve_with_incoming(UnboundedReceiverStream::new(incoming));
        tokio::spawn(server);
        let connector = tower::service_fn(move |_| {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let sent = pipes.send(Ok(far));
            async move {
                sent.map_err(|_| std::io::Error::other("the server is gone"))?;
                Ok::<_, std::io::Error>(TokioIo::new(near))
            }
        });
        Ok(Endpoint::from_static("http://sim.invalid").connect_with_connector_lazy(connector))
    }

    /// Who calls, after the way to the service: late, or not at all.
    async fn arrive<T>(&self, request: &Request<T>) -> Result<(Who, Fate), Status> {
        let who = who(request)?;
        let (delay, fate) = self.shared(|shared| {
            let delay = Duration::from_millis(shared.random.u64(1..120));
            let bad = shared.random.u8(..100) < shared.bad_percent;
            let fate = match (bad, shared.random.u8(..3)) {
                (false, _) => Fate::Fine,
                (true, 0) => Fate::RequestLost,
                (true, 1) => Fate::AnswerLost,
                (true, _) => Fate::Twice,
            };
            let name = match fate {
                Fate::Fine => "calls",
                Fate::RequestLost => "requests lost",
                Fate::AnswerLost => "answers lost",
                Fate::Twice => "requests twice",
            };
            *shared.counts.entry(name).or_default() += 1;
            (delay, fate)
        });
        tokio::time::sleep(delay).await;
        if fate == Fate::RequestLost {
            return Err(Status::unavailable("lost"));
        }
        self.service.admit(who)?;
        Ok((who, fate))
    }

    /// A call to the service.
    async fn call<Q: Clone + Send + 'static, R: Send + 'static>(
        &self,
        request: Request<Q>,
        work: fn(&Service, Who, &Q) -> Result<R, Status>,
    ) -> Result<Response<R>, Status> {
        let (who, fate) = self.arrive(&request).await?;
        let request = request.into_inner();
        let answer = work(&self.service, who, &request);
        if fate == Fate::Twice {
            let (again, late) = (
                self.clone(),
                self.shared(|s| Duration::from_millis(s.random.u64(1..5_000))),
            );
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                // Nobody waits for this answer.
                drop(work(&again.service, who, &request));
            });
        }
        let back = self.shared(|s| Duration::from_millis(s.random.u64(1..120)));
        tokio::time::sleep(back).await;
        match fate {
            Fate::AnswerLost => Err(Status::unavailable("lost")),
            _ => answer.map(Response::new),
        }
    }

    async fn stream<Q: Clone + Send + 'static, R: Send + 'static>(
        &self,
        request: Request<Q>,
        work: fn(&Service, Who, &Q) -> Result<R, Status>,
    ) -> Result<Response<One<R>>, Status> {
        let answer = self.call(request, work).await?;
        let one: One<R> = Box::pin(tokio_stream::once(Ok(answer.into_inner())));
        Ok(Response::new(one))
    }

    fn spoilt(&self, who: Who, request: &mut SubmitCommitRequest) {
        let hit = self.shared(|shared| {
            let place = shared
                .spoil
                .iter()
                .position(|device| *device == who.device)?;
            *shared.counts.entry("Commits spoilt").or_default() += 1;
            Some(shared.spoil.remove(place))
        });
        if hit.is_none() {
            return;
        }
        for bundle in &mut request.bundles {
            let mut bytes = bundle.commit.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            bundle.commit = bytes.into();
        }
    }
}

type One<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn who<T>(request: &Request<T>) -> Result<Who, Status> {
    let bad = || Status::unauthenticated("no token of this simulation");
    let token = token::bearer(request.metadata()).ok_or_else(bad)?;
    let (user, device) = token.split_once('/').ok_or_else(bad)?;
    Ok(Who {
        user: user.parse().map_err(|_| bad())?,
        device: device.parse().map_err(|_| bad())?,
    })
}

fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in the simulation"))
}

#[tonic::async_trait]
impl DeliveryService for Network {
    async fn get_service_info(
        &self,
        _request: Request<GetServiceInfoRequest>,
    ) -> Result<Response<GetServiceInfoResponse>, Status> {
        Ok(Response::new(GetServiceInfoResponse {
            domain: super::service::DOMAIN.into(),
            server_time_micros: self.clock.micros(),
            incarnation: self.service.incarnation().into(),
            ..GetServiceInfoResponse::default()
        }))
    }

    async fn publish_key_packages(
        &self,
        request: Request<PublishKeyPackagesRequest>,
    ) -> Result<Response<PublishKeyPackagesResponse>, Status> {
        self.call(request, |service, who, request| {
            let stock = service.publish(who, request)?;
            Ok(PublishKeyPackagesResponse { stock })
        })
        .await
    }

    async fn delete_key_packages(
        &self,
        _request: Request<DeleteKeyPackagesRequest>,
    ) -> Result<Response<DeleteKeyPackagesResponse>, Status> {
        not_here()
    }

    async fn get_key_package_stock(
        &self,
        request: Request<GetKeyPackageStockRequest>,
    ) -> Result<Response<GetKeyPackageStockResponse>, Status> {
        self.call(request, |service, who, _| {
            let stock = service.stock(who);
            Ok(GetKeyPackageStockResponse { stock })
        })
        .await
    }

    type ClaimKeyPackagesStream = One<ClaimKeyPackagesResponse>;

    async fn claim_key_packages(
        &self,
        request: Request<ClaimKeyPackagesRequest>,
    ) -> Result<Response<Self::ClaimKeyPackagesStream>, Status> {
        self.stream(request, |service, _, request| service.claim(request))
            .await
    }

    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        self.call(request, Service::create_group).await
    }

    async fn submit_commit(
        &self,
        mut request: Request<SubmitCommitRequest>,
    ) -> Result<Response<SubmitCommitResponse>, Status> {
        let who = who(&request)?;
        self.spoilt(who, request.get_mut());
        self.call(request, Service::commit).await
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        self.call(request, Service::send).await
    }

    type SendMessagesStream = One<SendMessagesResponse>;

    async fn send_messages(
        &self,
        _request: Request<Streaming<SendMessageRequest>>,
    ) -> Result<Response<Self::SendMessagesStream>, Status> {
        not_here()
    }

    type SubscribeStream = One<Frame>;

    async fn subscribe(
        &self,
        _request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        not_here()
    }

    type ReadLogStream = One<ReadLogResponse>;

    async fn read_log(
        &self,
        request: Request<ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        self.stream(request, Service::read_log).await
    }

    type FetchPayloadStream = One<FetchPayloadResponse>;

    async fn fetch_payload(
        &self,
        _request: Request<FetchPayloadRequest>,
    ) -> Result<Response<Self::FetchPayloadStream>, Status> {
        not_here()
    }

    async fn get_group_info(
        &self,
        request: Request<GetGroupInfoRequest>,
    ) -> Result<Response<GetGroupInfoResponse>, Status> {
        self.call(request, Service::group_info).await
    }

    type FetchTreeStream = One<FetchTreeResponse>;

    async fn fetch_tree(
        &self,
        request: Request<FetchTreeRequest>,
    ) -> Result<Response<Self::FetchTreeStream>, Status> {
        self.stream(request, Service::tree).await
    }

    async fn put_group_info(
        &self,
        request: Request<PutGroupInfoRequest>,
    ) -> Result<Response<PutGroupInfoResponse>, Status> {
        self.call(request, Service::put_group_info).await
    }

    type ListWelcomesStream = One<ListWelcomesResponse>;

    async fn list_welcomes(
        &self,
        request: Request<ListWelcomesRequest>,
    ) -> Result<Response<Self::ListWelcomesStream>, Status> {
        self.stream(request, |service, who, _| {
            let welcomes = service.welcomes(who);
            Ok(ListWelcomesResponse { welcomes })
        })
        .await
    }

    async fn ack_welcomes(
        &self,
        request: Request<AckWelcomesRequest>,
    ) -> Result<Response<AckWelcomesResponse>, Status> {
        self.call(request, |service, who, request| {
            service.acknowledge(who, request);
            Ok(AckWelcomesResponse {})
        })
        .await
    }

    type ListGroupsStream = One<ListGroupsResponse>;

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<Self::ListGroupsStream>, Status> {
        self.stream(request, |service, who, _| Ok(service.groups(who)))
            .await
    }

    type GetGroupStream = One<GetGroupResponse>;

    async fn get_group(
        &self,
        _request: Request<GetGroupRequest>,
    ) -> Result<Response<Self::GetGroupStream>, Status> {
        not_here()
    }

    async fn report_epoch(
        &self,
        request: Request<ReportEpochRequest>,
    ) -> Result<Response<ReportEpochResponse>, Status> {
        self.call(request, Service::report).await
    }

    async fn leave_group(
        &self,
        request: Request<LeaveGroupRequest>,
    ) -> Result<Response<LeaveGroupResponse>, Status> {
        self.call(request, Service::leave).await
    }

    async fn list_pending_removals(
        &self,
        request: Request<ListPendingRemovalsRequest>,
    ) -> Result<Response<ListPendingRemovalsResponse>, Status> {
        self.call(request, Service::pending).await
    }
}

type AuthStream<T> = One<T>;

#[tonic::async_trait]
impl AuthService for Network {
    async fn get_service_info(
        &self,
        _request: Request<chancery_proto::auth::v1::GetServiceInfoRequest>,
    ) -> Result<Response<chancery_proto::auth::v1::GetServiceInfoResponse>, Status> {
        not_here()
    }

    async fn enroll(
        &self,
        _request: Request<chancery_proto::auth::v1::EnrollRequest>,
    ) -> Result<Response<chancery_proto::auth::v1::EnrollResponse>, Status> {
        not_here()
    }

    /// Whoever says who it is gets a token: this simulation is about the Delivery Service.
    async fn issue_token(
        &self,
        request: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        let claims: AssertionClaims = token::unverified(&request.get_ref().client_assertion)
            .map_err(|_| Status::unauthenticated("no assertion"))?;
        let unknown = || Status::unauthenticated("nobody");
        let (_, id) = claims.sub.rsplit_once("/d/").ok_or_else(unknown)?;
        let device: Uuid = id.parse().map_err(|_| unknown())?;
        let user = self.shared(|shared| shared.users.get(&device).copied());
        let user = user.ok_or_else(unknown)?;
        Ok(Response::new(IssueTokenResponse {
            access_token: format!("{user}/{device}"),
            expires_at: self.clock.seconds() + 600,
        }))
    }

    async fn renew_certificate(
        &self,
        _request: Request<chancery_proto::auth::v1::RenewCertificateRequest>,
    ) -> Result<Response<chancery_proto::auth::v1::RenewCertificateResponse>, Status> {
        not_here()
    }

    async fn search_directory(
        &self,
        _request: Request<chancery_proto::auth::v1::SearchDirectoryRequest>,
    ) -> Result<Response<chancery_proto::auth::v1::SearchDirectoryResponse>, Status> {
        not_here()
    }

    async fn get_users(
        &self,
        _request: Request<chancery_proto::auth::v1::GetUsersRequest>,
    ) -> Result<Response<chancery_proto::auth::v1::GetUsersResponse>, Status> {
        not_here()
    }

    type GetDevicesStream = AuthStream<chancery_proto::auth::v1::GetDevicesResponse>;

    async fn get_devices(
        &self,
        _request: Request<chancery_proto::auth::v1::GetDevicesRequest>,
    ) -> Result<Response<Self::GetDevicesStream>, Status> {
        not_here()
    }

    async fn revoke_device(
        &self,
        _request: Request<chancery_proto::auth::v1::RevokeDeviceRequest>,
    ) -> Result<Response<chancery_proto::auth::v1::RevokeDeviceResponse>, Status> {
        not_here()
    }

    async fn check_certificate(
        &self,
        _request: Request<chancery_proto::auth::v1::CheckCertificateRequest>,
    ) -> Result<Response<chancery_proto::auth::v1::CheckCertificateResponse>, Status> {
        not_here()
    }

    type WatchDeviceStatusStream = AuthStream<chancery_proto::auth::v1::WatchDeviceStatusResponse>;

    async fn watch_device_status(
        &self,
        _request: Request<chancery_proto::auth::v1::WatchDeviceStatusRequest>,
    ) -> Result<Response<Self::WatchDeviceStatusStream>, Status> {
        not_here()
    }
}
