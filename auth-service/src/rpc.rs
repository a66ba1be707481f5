//! The tonic trait for clients: decode, know the caller, run the use case, encode. No SQL, no decisions.

use std::pin::Pin;

use chancery_proto::auth::v1::{auth_service_server::AuthService, *};
use futures_util::Stream;
use service_kit::lifecycle::Shutdown;
use tonic::{Request, Response, Status};

use crate::{
    caller::{self, Caller},
    credentials::Scheme,
    directory, enroll,
    error::{Error, status},
    feed::micros,
    node::Node,
    revocations, store, tokens, watch,
};

/// The service on one node.
#[derive(Debug, Clone)]
pub struct Rpc {
    node: Node,
    shutdown: Shutdown,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Devices in one part of an answer; a device is below 1 KiB.
const DEVICES_PART: usize = 200;

impl Rpc {
    /// Serves this node until shutdown.
    pub fn new(node: Node, shutdown: Shutdown) -> Self {
        Self { node, shutdown }
    }

    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        caller::admit(&self.node, request.metadata())
            .await
            .map_err(status)
    }

    async fn info(&self) -> Result<GetServiceInfoResponse, Error> {
        let client = self.node.db.client().await?;
        let (now, incarnation) = store::clock(&client).await?;
        let (config, keys) = (&self.node.config, &self.node.keys);
        let certificate = |der: &[u8]| {
            let (not_before, not_after) = chancery_proto::certificate::validity(der)
                .map_err(|error| Error::Internal(error.to_string()))?;
            Ok::<_, Error>(CertificateInfo {
                der: der.to_vec().into(),
                not_before,
                not_after,
            })
        };
        Ok(GetServiceInfoResponse {
            domain: config.domain.clone(),
            roots: vec![certificate(&keys.root_der)?],
            intermediates: vec![certificate(&keys.intermediate_der)?],
            token_keys_jwks: keys.jwks(),
            credential_schemes: Scheme::ALL.map(|scheme| scheme.code().into()).to_vec(),
            token_algorithms: vec!["EdDSA".into()],
            enrollment_methods: vec!["invitation".into()],
            certificate_lifetime_seconds: u64::from(config.certificate_lifetime_days) * 86_400,
            token_lifetime_seconds: config.token_lifetime_seconds.into(),
            clock_leeway_seconds: config.clock_leeway_seconds.into(),
            limits: config.limits.published(),
            version: env!("CARGO_PKG_VERSION").into(),
            server_time_micros: micros(now),
            incarnation: incarnation.as_bytes().to_vec().into(),
            token_audiences: config.audiences(),
        })
    }
}

#[tonic::async_trait]
impl AuthService for Rpc {
    async fn get_service_info(
        &self,
        _request: Request<GetServiceInfoRequest>,
    ) -> Result<Response<GetServiceInfoResponse>, Status> {
        self.info().await.map(Response::new).map_err(status)
    }

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let answer = enroll::enroll(&self.node, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn issue_token(
        &self,
        request: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        let answer = tokens::issue(&self.node, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn renew_certificate(
        &self,
        _request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        Err(Status::unimplemented("RenewCertificate is not served yet"))
    }

    async fn search_directory(
        &self,
        request: Request<SearchDirectoryRequest>,
    ) -> Result<Response<SearchDirectoryResponse>, Status> {
        self.caller(&request).await?;
        let answer = directory::search(&self.node, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn get_users(
        &self,
        request: Request<GetUsersRequest>,
    ) -> Result<Response<GetUsersResponse>, Status> {
        self.caller(&request).await?;
        let users = directory::users(&self.node, request.get_ref())
            .await
            .map_err(status)?;
        Ok(Response::new(GetUsersResponse { users }))
    }

    type GetDevicesStream = Answers<GetDevicesResponse>;

    async fn get_devices(
        &self,
        request: Request<GetDevicesRequest>,
    ) -> Result<Response<Self::GetDevicesStream>, Status> {
        self.caller(&request).await?;
        let mut devices = directory::devices(&self.node, request.get_ref())
            .await
            .map_err(status)?
            .into_iter()
            .peekable();
        let parts = std::iter::from_fn(move || {
            devices.peek()?;
            let devices = devices.by_ref().take(DEVICES_PART).collect();
            Some(Ok(GetDevicesResponse { devices }))
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn revoke_device(
        &self,
        request: Request<RevokeDeviceRequest>,
    ) -> Result<Response<RevokeDeviceResponse>, Status> {
        let caller = self.caller(&request).await?;
        let seq = revocations::by_user(&self.node, &caller, request.get_ref())
            .await
            .map_err(status)?;
        Ok(Response::new(RevokeDeviceResponse { seq }))
    }

    async fn check_certificate(
        &self,
        request: Request<CheckCertificateRequest>,
    ) -> Result<Response<CheckCertificateResponse>, Status> {
        self.caller(&request).await?;
        let answer = revocations::check(&self.node, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }

    type WatchDeviceStatusStream = Answers<WatchDeviceStatusResponse>;

    async fn watch_device_status(
        &self,
        request: Request<WatchDeviceStatusRequest>,
    ) -> Result<Response<Self::WatchDeviceStatusStream>, Status> {
        let stream = watch::open(&self.node, request.get_ref(), &self.shutdown)
            .await
            .map_err(status)?;
        Ok(Response::new(Box::pin(stream)))
    }
}
