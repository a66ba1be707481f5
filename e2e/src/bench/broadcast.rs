//! What fan-out is compared with: a plain tonic server that broadcasts what it is sent to all who listen, as its documentation would have it. It keeps
//! nothing and checks nothing.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use chancery_proto::delivery::v1::{
    Entries, Entry, Frame, SendMessageRequest, SendMessageResponse, SubscribeRequest, entry, frame,
};
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, ServerStreamingService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower::Service;

/// Opens a stream.
pub const LISTEN: &str = "/bench.Broadcast/Listen";
/// Sends to all of them.
pub const SEND: &str = "/bench.Broadcast/Send";

#[derive(Clone)]
struct Broadcast(Arc<broadcast::Sender<Bytes>>);

/// Serves on a loopback port, which is printed, until the process ends.
///
/// # Errors
/// The listener fails.
pub async fn serve() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    std::io::Write::write_all(&mut std::io::stdout(), format!("{port}\n").as_bytes())?;
    let (sender, _) = broadcast::channel(16);
    let incoming = TcpListenerStream::new(listener).map(|socket| {
        let socket = socket?;
        socket.set_nodelay(true)?;
        Ok::<_, std::io::Error>(socket)
    });
    tonic::transport::Server::builder()
        .add_service(Broadcast(Arc::new(sender)))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

impl ServerStreamingService<SubscribeRequest> for Broadcast {
    type Response = Frame;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<SubscribeRequest>) -> Self::Future {
        let frames = BroadcastStream::new(self.0.subscribe()).map(|payload| {
            let payload = payload.map_err(|_| Status::data_loss("too slow"))?;
            let entry = Entry {
                body: Some(entry::Body::Payload(payload)),
                ..Entry::default()
            };
            let entries = Entries {
                entries: vec![entry],
                ..Entries::default()
            };
            Ok(Frame {
                frame: Some(frame::Frame::Entries(entries)),
            })
        });
        std::future::ready(Ok(Response::new(Box::pin(frames))))
    }
}

impl UnaryService<SendMessageRequest> for Broadcast {
    type Response = SendMessageResponse;
    type Future = std::future::Ready<Result<Response<SendMessageResponse>, Status>>;

    fn call(&mut self, request: Request<SendMessageRequest>) -> Self::Future {
        // Nobody listens yet: nobody misses it.
        let _listeners = self.0.send(request.into_inner().message);
        std::future::ready(Ok(Response::new(SendMessageResponse::default())))
    }
}

impl NamedService for Broadcast {
    const NAME: &'static str = "bench.Broadcast";
}

impl Service<http::Request<Body>> for Broadcast {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                LISTEN => {
                    let mut grpc = Grpc::new(ProstCodec::default());
                    grpc.server_streaming(service, request).await
                }
                SEND => {
                    Grpc::new(ProstCodec::default())
                        .unary(service, request)
                        .await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}
