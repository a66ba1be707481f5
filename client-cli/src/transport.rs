//! Channels to the services, and the one loop that repeats what got no answer: with the same bytes, until the deadline.

use std::{sync::Arc, time::Duration};

use chancery_proto::{common::v1::Reason, status::Refusal};
use tokio::time::Instant;
use tonic::{
    Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{failure::Failure, profile::Profile, surroundings::Surroundings};

/// How long one call may take before it counts as unanswered. Streams have no such limit.
const CALL: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// An answer, and how often the outcome was unknown before it came.
#[derive(Debug, Clone, Copy)]
pub struct Answered<T> {
    /// The answer.
    pub value: T,
    /// Requests that were sent and got no answer.
    pub unknown_outcomes: u32,
}

/// Connections of one profile.
#[derive(Debug, Clone)]
pub struct Transport {
    /// The Authentication Service.
    pub auth: Channel,
    /// The Delivery Service.
    pub delivery: Channel,
    /// The same without a limit for one call, for streams that stay open.
    pub delivery_streams: Channel,
    deadline: Duration,
    surroundings: Arc<dyn Surroundings>,
}

/// An address as a lazy channel.
///
/// # Errors
/// Not an address, or a TLS authority that cannot be used.
pub fn channel(url: &str, ca: Option<&str>, call: Option<Duration>) -> Result<Channel, Failure> {
    let bad = |error: tonic::transport::Error| Failure::Usage(format!("{url}: {error}"));
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(bad)?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(30));
    if let Some(call) = call {
        endpoint = endpoint.timeout(call);
    }
    if url.starts_with("https://") {
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = ca {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        endpoint = endpoint.tls_config(tls).map_err(bad)?;
    }
    Ok(endpoint.connect_lazy())
}

impl Transport {
    /// Prepares; connects when something is sent.
    ///
    /// # Errors
    /// An address that cannot be used.
    pub fn new(
        profile: &Profile,
        deadline: Duration,
        surroundings: Arc<dyn Surroundings>,
    ) -> Result<Self, Failure> {
        let ca = profile.tls_ca.as_deref();
        Ok(Self {
            auth: channel(&profile.auth_url, ca, Some(CALL))?,
            delivery: channel(&profile.delivery_url, ca, Some(CALL))?,
            delivery_streams: channel(&profile.delivery_url, ca, None)?,
            deadline,
            surroundings,
        })
    }

    /// Over channels that somebody else made.
    pub fn over(
        auth: Channel,
        delivery: Channel,
        deadline: Duration,
        surroundings: Arc<dyn Surroundings>,
    ) -> Self {
        Self {
            auth,
            delivery_streams: delivery.clone(),
            delivery,
            deadline,
            surroundings,
        }
    }

    /// Calls until there is an answer, at most until the deadline. Only for calls that may be repeated.
    ///
    /// # Errors
    /// [`Failure::Refused`], or [`Failure::Unanswered`].
    pub async fn repeat<T>(
        &self,
        call: impl AsyncFn() -> Result<T, Status>,
    ) -> Result<Answered<T>, Failure> {
        let until = Instant::now() + self.deadline;
        let (mut pause, mut unknown_outcomes) = (FIRST_PAUSE, 0);
        loop {
            let status = match call().await {
                Ok(value) => {
                    return Ok(Answered {
                        value,
                        unknown_outcomes,
                    });
                }
                Err(status) => status,
            };
            let refusal = Refusal::from_status(&status);
            if !refusal.outcome_unknown() {
                return Err(Failure::Refused(Box::new(refusal)));
            }
            unknown_outcomes += u32::from(!(never_sent(&status) || never_looked_at(&refusal)));
            let wait = refusal
                .retry_after
                .unwrap_or(pause)
                .max(self.surroundings.jittered(pause));
            if Instant::now() + wait >= until {
                return Err(Failure::unanswered(refusal));
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The server answered that it did not begin.
fn never_looked_at(refusal: &Refusal) -> bool {
    matches!(
        refusal.reason,
        Some(Reason::Overloaded | Reason::Busy | Reason::ShuttingDown | Reason::StatusFeedStale)
    )
}

/// No connection could be made.
fn never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The request with a bearer token.
///
/// # Errors
/// A token that does not fit a header.
pub fn with_token<T>(message: T, token: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}")
        .parse()
        .map_err(|_| Status::unauthenticated("the token cannot be sent"))?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}
