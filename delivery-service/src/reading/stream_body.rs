//! `Subscribe` on the wire: frames encoded once, and the HTTP body that carries them.
//!
//! A stream's work runs inside its body: whoever polls the body for its next bytes drives the work, so a message costs one wake-up of one task, no
//! channel and no copy, and a reader that went away ends the work by dropping it.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use chancery_proto::delivery::v1::{Frame, frame};
use futures_util::task::AtomicWaker;
use prost::Message as _;
use tonic::Status;

/// Length and flag before each gRPC message.
const PREFIX_BYTES: usize = 5;

/// Appends one frame as a gRPC message.
pub fn put(bytes: &mut BytesMut, frame: frame::Frame) {
    let frame = Frame { frame: Some(frame) };
    let length = frame.encoded_len();
    bytes.reserve(PREFIX_BYTES + length);
    bytes.put_u8(0);
    // Frames hold at most some hundred KiB.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame
        .encode(bytes)
        .expect("there is room for what was measured");
}

/// Room for one piece on its way out: nothing is read ahead for a slow reader.
#[derive(Debug, Clone, Default)]
pub struct Outlet(Arc<Mutex<Place>>);

#[derive(Debug, Default)]
struct Place {
    bytes: Bytes,
    /// The work, when it has more.
    waits: Option<Waker>,
}

impl Outlet {
    fn held(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over bytes once those before were taken.
    pub async fn put(&self, bytes: Bytes) {
        let mut bytes = Some(bytes);
        std::future::poll_fn(|cx| {
            let mut place = self.held();
            if !place.bytes.is_empty() {
                place.waits = Some(cx.waker().clone());
                return Poll::Pending;
            }
            place.bytes = bytes.take().unwrap_or_default();
            Poll::Ready(())
        })
        .await;
    }

    fn take(&self) -> Option<Bytes> {
        let mut place = self.held();
        let bytes = std::mem::take(&mut place.bytes);
        if let Some(waker) = place.waits.take() {
            waker.wake();
        }
        (!bytes.is_empty()).then_some(bytes)
    }
}

type Work = Pin<Box<dyn Future<Output = Status> + Send>>;

/// Whether the work has a reason to go on: a body is polled for other reasons too, each time that it has handed something over among them.
#[derive(Debug, Default)]
struct Reason {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Reason {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// The body of a response whose work ends with a status.
pub struct Body {
    outlet: Outlet,
    work: Option<Work>,
    reason: Arc<Reason>,
    /// The work's end, behind the last bytes.
    end: Option<Status>,
}

impl Body {
    /// `work` puts its bytes into the outlet that it is given.
    pub fn of<F>(work: impl FnOnce(Outlet) -> F) -> Self
    where
        F: Future<Output = Status> + Send + 'static,
    {
        let outlet = Outlet::default();
        Self {
            work: Some(Box::pin(work(outlet.clone()))),
            outlet,
            reason: Arc::new(Reason {
                woken: AtomicBool::new(true),
                task: AtomicWaker::new(),
            }),
            end: None,
        }
    }

    /// Lets the work go on, if it has a reason to.
    fn go_on(&mut self, cx: &mut Context<'_>) {
        self.reason.task.register(cx.waker());
        if !self.reason.woken.swap(false, Ordering::AcqRel) {
            return;
        }
        let waker = Waker::from(self.reason.clone());
        if let Some(work) = &mut self.work
            && let Poll::Ready(status) = work.as_mut().poll(&mut Context::from_waker(&waker))
        {
            self.work = None;
            self.end = Some(status);
        }
    }

    fn trailers(&mut self) -> Option<Result<http_body::Frame<Bytes>, Status>> {
        let mut trailers = http::HeaderMap::new();
        let added = self.end.take()?.add_header(&mut trailers);
        Some(added.map(|()| http_body::Frame::trailers(trailers)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(bytes) = this.outlet.take() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(bytes))));
        }
        this.go_on(cx);
        match this.outlet.take() {
            Some(bytes) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            None if this.work.is_some() => Poll::Pending,
            None => Poll::Ready(this.trailers()),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.work.is_none() && self.end.is_none() && self.outlet.held().bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use http_body::Body as _;

    async fn frames(mut body: Body) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            let frame = frame.unwrap();
            seen.push(match frame.into_data() {
                Ok(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    format!("status {}", trailers["grpc-status"].to_str().unwrap())
                }
            });
        }
        assert!(body.is_end_stream());
        seen
    }

    #[tokio::test]
    async fn everything_comes_in_order_and_the_status_last() {
        let body = Body::of(|outlet| async move {
            for text in ["a", "b", "c"] {
                outlet.put(text.into()).await;
                if text == "b" {
                    tokio::task::yield_now().await;
                }
            }
            Status::unavailable("later")
        });
        assert_eq!(frames(body).await, ["a", "b", "c", "status 14"]);
    }

    #[tokio::test]
    async fn nothing_is_made_ahead_of_the_reader() {
        let made = Arc::new(Mutex::new(0));
        let counted = made.clone();
        let mut body = Body::of(|outlet| async move {
            loop {
                outlet.put("x".into()).await;
                *counted.lock().unwrap() += 1;
            }
        });
        for taken in 1..4 {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            assert!(frame.is_some());
            assert_eq!(*made.lock().unwrap(), taken);
        }
    }

    #[tokio::test]
    async fn frames_are_grpc_messages() {
        let mut bytes = BytesMut::new();
        put(&mut bytes, frame::Frame::CaughtUp(Default::default()));
        put(&mut bytes, frame::Frame::Heartbeat(Default::default()));
        let body = tonic::body::Body::new(Body::of(|outlet| async move {
            outlet.put(bytes.freeze()).await;
            Status::ok("")
        }));
        let decoder = tonic_prost::ProstCodec::<Frame, Frame>::default();
        let stream = tonic::Streaming::<Frame>::new_response(
            tonic::codec::Codec::decoder(&mut { decoder }),
            body,
            http::StatusCode::OK,
            None,
            None,
        );
        let frames: Vec<Frame> = stream.map(|frame| frame.unwrap()).collect().await;
        assert!(matches!(frames[0].frame, Some(frame::Frame::CaughtUp(_))));
        assert!(matches!(frames[1].frame, Some(frame::Frame::Heartbeat(_))));
        assert_eq!(frames.len(), 2);
    }
}
