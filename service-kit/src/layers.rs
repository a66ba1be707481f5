//! What happens around every request: its id, its deadline, a permit, its metrics, and a panic that stays inside.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use chancery_proto::{common::v1::Reason, status};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::Semaphore;
use tonic::{Status, body::Body};
use tower::Service;
use tracing::Instrument as _;

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_CHARACTERS: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct GuardOptions {
    pub(crate) prefix: &'static str,
    pub(crate) permits: usize,
    pub(crate) deadline_floor: Duration,
}

/// The outermost service.
#[derive(Debug, Clone)]
pub(crate) struct Guard<S> {
    inner: S,
    options: GuardOptions,
    permits: Arc<Semaphore>,
}

impl<S> Guard<S> {
    pub(crate) fn new(inner: S, options: GuardOptions) -> Self {
        Self {
            inner,
            permits: Arc::new(Semaphore::new(options.permits)),
            options,
        }
    }
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone that was polled ready is the one to call.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let options = self.options.clone();
        let permits = self.permits.clone();
        let id = request_id(request.headers());
        let method = request.uri().path().to_owned();
        let span = tracing::info_span!("request", %method, request_id = %id);
        let work = async move {
            let started = Instant::now();
            let mut response = guarded(inner, request, &options, &permits).await;
            if let Ok(value) = HeaderValue::from_str(&id) {
                response.headers_mut().insert(REQUEST_ID, value);
            }
            record(&options, method, &response, started.elapsed());
            Ok(response)
        };
        Box::pin(work.instrument(span))
    }
}

async fn guarded<S>(
    mut inner: S,
    request: Request<Body>,
    options: &GuardOptions,
    permits: &Semaphore,
) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send,
    S::Future: Send,
{
    if timeout(request.headers()).is_some_and(|left| left < options.deadline_floor) {
        return Status::deadline_exceeded("too little time is left").into_http();
    }
    let Ok(_permit) = permits.try_acquire() else {
        return status::refusal(Reason::Overloaded, "too many requests are under way", [])
            .into_http();
    };
    match AssertUnwindSafe(inner.call(request)).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_panic) => {
            tracing::error!("a request panicked");
            Status::internal("internal error").into_http()
        }
    }
}

/// The caller's id, if it is short and printable, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_CHARACTERS)
        .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// `grpc-timeout`: up to eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

fn record(options: &GuardOptions, method: String, response: &Response<Body>, took: Duration) {
    // A status in the headers is a refusal; a stream or an answer carries its own in the trailers.
    let code = response
        .headers()
        .get("grpc-status")
        .and_then(|code| code.to_str().ok())
        .unwrap_or("0")
        .to_owned();
    let prefix = options.prefix;
    metrics::counter!(format!("chancery_{prefix}_requests_total"), "method" => method.clone(), "code" => code)
        .increment(1);
    metrics::histogram!(format!("chancery_{prefix}_request_seconds"), "method" => method)
        .record(took.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(permits: usize) -> GuardOptions {
        GuardOptions {
            prefix: "test",
            permits,
            deadline_floor: Duration::from_millis(5),
        }
    }

    fn request(header: Option<(&'static str, &str)>) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        if let Some((name, value)) = header {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request
    }

    async fn answer(
        permits: usize,
        header: Option<(&'static str, &str)>,
        panics: bool,
    ) -> Response<Body> {
        let inner = tower::service_fn(move |_| async move {
            assert!(!panics, "as asked");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        Guard::new(inner, options(permits))
            .call(request(header))
            .await
            .unwrap()
    }

    fn status_of(response: &Response<Body>) -> Option<&str> {
        response
            .headers()
            .get("grpc-status")
            .map(|s| s.to_str().unwrap())
    }

    #[tokio::test]
    async fn a_request_id_is_kept_or_made() {
        let kept = answer(1, Some((REQUEST_ID, "abc")), false).await;
        assert_eq!(kept.headers()[REQUEST_ID], "abc");
        let long = "x".repeat(65);
        let made = answer(1, Some((REQUEST_ID, &long)), false).await;
        assert_eq!(made.headers()[REQUEST_ID].len(), 36);
    }

    #[tokio::test]
    async fn overload_a_short_deadline_and_a_panic_are_answers() {
        assert_eq!(status_of(&answer(0, None, false).await), Some("14"));
        assert_eq!(
            status_of(&answer(1, Some(("grpc-timeout", "4m")), false).await),
            Some("4")
        );
        assert_eq!(
            status_of(&answer(1, Some(("grpc-timeout", "5m")), false).await),
            None
        );
        let panicked = answer(1, None, true).await;
        assert_eq!(status_of(&panicked), Some("13"));
        assert!(panicked.headers().contains_key(REQUEST_ID));
    }
}
