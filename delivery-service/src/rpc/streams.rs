//! `Subscribe`, answered before the generated server sees it: its frames come encoded, and one encoding serves all who follow a group.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use chancery_proto::delivery::v1::{
    Frame, SubscribeRequest, delivery_service_server::DeliveryServiceServer,
};
use futures_util::future::BoxFuture;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::Codec as _,
    metadata::{GRPC_CONTENT_TYPE, MetadataMap},
    server::NamedService,
};
use tower::Service;

use crate::{error::status, reading::subscribe, rpc::Rpc};

const PATH: &str = "/chancery.delivery.v1.DeliveryService/Subscribe";

/// The generated server, but for `Subscribe`.
#[derive(Debug, Clone)]
pub struct WithSubscribe {
    others: DeliveryServiceServer<Rpc>,
    rpc: Rpc,
    request_bytes: usize,
}

impl WithSubscribe {
    /// `others` serves every other method; a `SubscribeRequest` may be so large.
    pub fn new(others: DeliveryServiceServer<Rpc>, rpc: Rpc, request_bytes: usize) -> Self {
        Self {
            others,
            rpc,
            request_bytes,
        }
    }

    async fn subscribe(self, request: http::Request<Body>) -> Result<Body, Status> {
        let (parts, body) = request.into_parts();
        let caller = self
            .rpc
            .recognised(&MetadataMap::from_headers(parts.headers))
            .await?;
        let decoder = tonic_prost::ProstCodec::<Frame, SubscribeRequest>::default().decoder();
        let mut requests = Streaming::new_request(decoder, body, None, Some(self.request_bytes));
        let request = requests
            .message()
            .await?
            .ok_or_else(|| Status::internal("the request message is missing"))?;
        let frames = subscribe::subscribe(&self.rpc.node, caller, &request).map_err(status)?;
        Ok(Body::new(frames))
    }
}

impl NamedService for WithSubscribe {
    const NAME: &'static str = <DeliveryServiceServer<Rpc> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for WithSubscribe {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != PATH {
            return self.others.call(request);
        }
        let stream = self.clone().subscribe(request);
        Box::pin(async move {
            Ok(match stream.await {
                Ok(body) => {
                    let mut response = http::Response::new(body);
                    let headers = response.headers_mut();
                    headers.insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}
