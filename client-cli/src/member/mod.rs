//! The member: the core, the store and the services together.
//!
//! Every operation is written down before it is sent, repeated with the same bytes until it is answered, and taken over in one transaction.
//!
//! | module | what |
//! |---|---|
//! | this one | opening a profile, tokens, the pinned roots |
//! | [`enroll`] | becoming a device; KeyPackages |
//! | [`stock`] | keeping the stock of KeyPackages filled |
//! | [`directory`] | people and their devices |
//! | [`sync`] | everything up to its head; what a crash left open |
//! | [`welcomes`] | Welcomes used, or put aside |
//! | `incarnation` | what a restored Delivery Service makes necessary |
//! | `add` | devices that come into a group |
//! | `claim` | KeyPackages of others |
//! | [`commit`] | groups made and changed, races included |
//! | `left_out` | devices that got no leaf, as soon as they can have one |
//! | `replace` | a group that goes on in another one |
//! | `limits` | how large a message may be |
//! | [`send`] | messages |
//! | [`outbox`] | messages that wait for an answer |
//! | [`heal`] | what it does unasked when something is wrong |
//! | [`listen`] | following everything |

mod add;
mod claim;
pub mod commit;
pub mod directory;
pub mod enroll;
pub mod heal;
mod incarnation;
mod left_out;
mod limits;
pub mod listen;
pub mod outbox;
mod replace;
pub mod send;
pub mod stock;
pub mod sync;
pub mod welcomes;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chancery_proto::{
    auth::v1::{GetServiceInfoRequest, IssueTokenRequest, auth_service_client::AuthServiceClient},
    certificate::Anchors,
    common::v1::Reason,
    delivery::v1::delivery_service_client::DeliveryServiceClient,
    token::{ASSERTION_TYPE, AssertionClaims, sign},
};
use serde::{Deserialize, Serialize};
use tonic::{Request, Status, transport::Channel};
use uuid::Uuid;

use crate::{
    core::{
        Context, CoreError,
        identity::{Identity, Trust},
        records::GroupName,
    },
    failure::Failure,
    outcomes::{Failed, Loop},
    profile::{PinnedRoot, Profile},
    progress::{Progress, Silent},
    store::{Step, Store, rows::Traffic},
    surroundings::{Surroundings, System},
    transport::{Answered, Transport, channel, with_token},
};

const META: &str = "meta";
const IDENTITY: &[u8] = b"identity";
const P256_KEY: &[u8] = b"identity.p256";
/// A token this close to its end is not used.
const TOKEN_MARGIN_SECONDS: i64 = 30;
/// Devices that are removed in an hour on others' signatures, where no option says otherwise.
pub const REMOVALS_PER_HOUR: u32 = 1_000;
/// How long a device that was left out is left to whoever tried to add it, where no option says otherwise, seconds.
pub const LEFT_OUT_WAIT_SECONDS: u32 = 3_600;
/// How often intermediates are asked for again.
const ROOTS_SECONDS: i64 = 3_600;

/// The Delivery Service's client.
pub type Delivery = DeliveryServiceClient<Channel>;
/// The Authentication Service's client.
pub type Auth = AuthServiceClient<Channel>;

/// Which service a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Audience {
    /// The Authentication Service.
    Auth,
    /// The Delivery Service.
    Delivery,
}

#[derive(Serialize, Deserialize)]
struct CachedToken {
    token: String,
    expires_at: i64,
}

/// Certificates that a pinned root was last shown to vouch for.
#[derive(Serialize, Deserialize)]
struct Intermediates {
    der: Vec<Vec<u8>>,
    fetched_at: i64,
}

/// An enrolled device.
#[derive(Debug)]
pub struct Member {
    folder: PathBuf,
    profile: Profile,
    store: Mutex<Store>,
    identity: Identity,
    trust: Trust,
    transport: Transport,
    removals_per_hour: u32,
    left_out_wait_seconds: u32,
    progress: Arc<dyn Progress>,
    surroundings: Arc<dyn Surroundings>,
    /// Groups whose log was read since this profile was opened.
    read: Mutex<BTreeSet<GroupName>>,
    /// Pinned roots that could not be used.
    unpinned: Mutex<Vec<Failed>>,
}

/// Opens the store of a folder; waits for other processes' steps at most so long.
///
/// # Errors
/// See [`Store::open_within`].
pub fn open_store(folder: &Path, wait: Duration) -> Result<Store, Failure> {
    Ok(Store::open_within(folder, wait)?)
}

/// Without blocking the other tasks of a runtime with several threads: a step may wait for another process's.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

impl Member {
    /// Opens an enrolled profile.
    ///
    /// # Errors
    /// Not enrolled, a store that cannot be opened, or the root of its own domain: not pinned, damaged, over, or with
    /// certificates that were never fetched and cannot be now.
    pub async fn open(
        folder: &Path,
        profile: Profile,
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let mut store = blocking(|| open_store(folder, deadline))?;
        let identity: Option<Identity> = blocking(|| store.step(|step| step.get(META, IDENTITY)))?;
        let mut identity = identity.ok_or_else(|| {
            Failure::Profile("this profile is not enrolled yet: enroll first".into())
        })?;
        identity.p256 = blocking(|| store.step(|step| step.get(META, P256_KEY)))?;
        let surroundings = Arc::new(System);
        let transport = Transport::new(&profile, deadline, surroundings.clone())?;
        let mut member = Self {
            folder: folder.to_owned(),
            ..Self::over(profile, store, identity, transport, surroundings)
        };
        member.load_roots().await?;
        Ok(member)
    }

    /// A member over a store and channels that somebody else made, in its own surroundings; nothing is pinned yet.
    pub fn over(
        profile: Profile,
        store: Store,
        identity: Identity,
        transport: Transport,
        surroundings: Arc<dyn Surroundings>,
    ) -> Self {
        Self {
            folder: PathBuf::new(),
            profile,
            store: Mutex::new(store),
            identity,
            trust: Trust::default(),
            transport,
            removals_per_hour: REMOVALS_PER_HOUR,
            left_out_wait_seconds: LEFT_OUT_WAIT_SECONDS,
            progress: Arc::new(Silent),
            surroundings,
            read: Mutex::default(),
            unpinned: Mutex::default(),
        }
    }

    /// The same with pinned roots.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Gives the store back; one that a panic left behind too.
    pub fn into_store(self) -> Store {
        self.store
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A new id, in its surroundings.
    pub fn new_id(&self) -> [u8; 16] {
        self.surroundings.new_id()
    }

    pub(crate) fn now(&self) -> i64 {
        self.surroundings.now()
    }

    /// Another number of devices that are removed in an hour on others' signatures, and no person's word.
    #[must_use]
    pub fn with_removals_per_hour(mut self, removals: u32) -> Self {
        self.removals_per_hour = removals;
        self
    }

    /// Another time for which a device that was left out of a group is left to whoever tried to add it, seconds.
    #[must_use]
    pub fn with_left_out_wait(mut self, seconds: u32) -> Self {
        self.left_out_wait_seconds = seconds;
        self
    }

    /// Tells somebody how far long operations have come.
    #[must_use]
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Who this device is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its addresses and roots.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What went through its store since it was opened.
    pub fn traffic(&self) -> Traffic {
        self.locked_store().traffic()
    }

    fn locked_store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One transaction of the store.
    ///
    /// # Errors
    /// What `work` says, or the store.
    pub fn step<T>(
        &self,
        work: impl FnOnce(&Step<'_>, Context<'_>) -> Result<T, CoreError>,
    ) -> Result<T, Failure> {
        let context = Context {
            identity: &self.identity,
            trust: &self.trust,
            now: self.now(),
            removals_per_hour: self.removals_per_hour,
            left_out_wait_seconds: self.left_out_wait_seconds,
        };
        blocking(|| self.locked_store().step(|step| work(step, context))).map_err(Failure::Core)
    }

    /// Pins what the profile names. Without its own domain's root this device can judge nobody, and every command ends
    /// here; another domain's that cannot be used is noted, and this device trusts nobody of that domain until it can.
    async fn load_roots(&mut self) -> Result<(), Failure> {
        let own = self.identity.person.domain.clone();
        if self.profile.roots.iter().all(|root| root.domain != own) {
            return Err(Failure::Profile(format!(
                "profile.json pins no root of {own}: put its \"roots\" back from a copy, or enroll into a new folder"
            )));
        }
        for root in self.profile.roots.clone() {
            match self.anchors(&root).await {
                Ok(anchors) => self.trust.pin(&root.domain, anchors),
                Err(failure @ Failure::Core(CoreError::Store(_))) => return Err(failure),
                Err(failure) if root.domain == own => return Err(failure),
                Err(failure) => {
                    self.trust.cannot_pin(&root.domain, &failure.to_string());
                    self.unpinned
                        .get_mut()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Failed {
                            of: Loop::Roots,
                            item: root.domain,
                            failure,
                        });
                }
            }
        }
        Ok(())
    }

    async fn anchors(&self, root: &PinnedRoot) -> Result<Anchors, Failure> {
        let der = root.der()?;
        let intermediates = self.intermediates(root).await?;
        Anchors::pinned(&der, &intermediates, self.now())
            .map_err(|error| Failure::Profile(format!("the root of {}: {error}", root.domain)))
    }

    /// The pinned roots that could not be used when this profile was opened, once.
    pub(crate) fn take_unpinned(&self) -> Vec<Failed> {
        let mut unpinned = self.unpinned.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut unpinned)
    }

    /// What is remembered, asked for again from time to time; an Authentication Service that is down delays nothing.
    async fn intermediates(&self, root: &PinnedRoot) -> Result<Vec<Vec<u8>>, Failure> {
        let key = format!("intermediates:{}", root.domain).into_bytes();
        let known: Option<Intermediates> = self.step(|step, _| Ok(step.get(META, &key)?))?;
        if let Some(known) = &known
            && self.now() - known.fetched_at < ROOTS_SECONDS
        {
            return Ok(known.der.clone());
        }
        match fetch_intermediates(&self.transport, root, self.profile.tls_ca.as_deref()).await {
            Ok(der) => {
                let fetched = Intermediates {
                    der,
                    fetched_at: self.now(),
                };
                self.step(|step, _| Ok(step.put(META, &key, &fetched)?))?;
                Ok(fetched.der)
            }
            Err(failure) => known.map(|known| known.der).ok_or(failure),
        }
    }

    fn audience(&self, audience: Audience) -> String {
        match audience {
            Audience::Auth => format!("as:{}", self.identity.person.domain),
            Audience::Delivery => format!("ds:{}", self.profile.delivery_domain),
        }
    }

    /// A token that is good for a while: a remembered one, or a new one for a client assertion.
    ///
    /// # Errors
    /// The Authentication Service's refusal, or no answer.
    pub async fn token(&self, audience: Audience) -> Result<String, Failure> {
        let audience = self.audience(audience);
        let key = format!("token:{audience}").into_bytes();
        let known: Option<CachedToken> = self.step(|step, _| Ok(step.get(META, &key)?))?;
        if let Some(known) = known
            && known.expires_at > self.now() + TOKEN_MARGIN_SECONDS
        {
            return Ok(known.token);
        }
        let issued = self
            .transport
            .repeat(async || {
                // A new assertion each time: one that was used is not taken again.
                let request = IssueTokenRequest {
                    client_assertion: self.assertion()?,
                    audience: audience.clone(),
                };
                let mut client = Auth::new(self.transport.auth.clone());
                Ok(client.issue_token(request).await?.into_inner())
            })
            .await?
            .value;
        let cached = CachedToken {
            token: issued.access_token,
            expires_at: issued.expires_at,
        };
        self.step(|step, _| Ok(step.put(META, &key, &cached)?))?;
        Ok(cached.token)
    }

    fn forget_token(&self, audience: Audience) -> Result<(), Failure> {
        let key = format!("token:{}", self.audience(audience)).into_bytes();
        self.step(|step, _| Ok(step.delete(META, &key)?))
    }
    fn assertion(&self) -> Result<String, Status> {
        let name = self.identity.person.device_uri();
        let now = self.now();
        let claims = AssertionClaims {
            iss: name.clone(),
            sub: name,
            aud: format!("as:{}", self.identity.person.domain),
            iat: now,
            exp: now + 60,
            jti: Uuid::new_v4().to_string(),
        };
        sign(ASSERTION_TYPE, None, &claims, &self.identity.pkcs8)
            .map_err(|_| Status::unauthenticated("the device key cannot sign"))
    }

    /// A call to the Delivery Service with a good token, repeated until it is answered. Only for calls that may be repeated.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn delivery<Q: Clone, T>(
        &self,
        request: Q,
        call: impl AsyncFn(Delivery, Request<Q>) -> Result<T, Status>,
    ) -> Result<Answered<T>, Failure> {
        let client =
            || Delivery::new(self.transport.delivery.clone()).max_encoding_message_size(usize::MAX);
        self.with_fresh_token(Audience::Delivery, async |token| {
            call(client(), with_token(request.clone(), token)?).await
        })
        .await
    }

    /// The same to the Authentication Service.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn auth<Q: Clone, T>(
        &self,
        request: Q,
        call: impl AsyncFn(Auth, Request<Q>) -> Result<T, Status>,
    ) -> Result<Answered<T>, Failure> {
        let client = || Auth::new(self.transport.auth.clone());
        self.with_fresh_token(Audience::Auth, async |token| {
            call(client(), with_token(request.clone(), token)?).await
        })
        .await
    }

    /// A token that the server no longer takes is replaced once.
    async fn with_fresh_token<T>(
        &self,
        audience: Audience,
        call: impl AsyncFn(&str) -> Result<T, Status>,
    ) -> Result<Answered<T>, Failure> {
        let token = self.token(audience).await?;
        match self.transport.repeat(async || call(&token).await).await {
            Err(failure)
                if matches!(
                    failure.reason(),
                    Some(Reason::TokenExpired | Reason::TokenInvalid)
                ) =>
            {
                self.forget_token(audience)?;
                let token = self.token(audience).await?;
                self.transport.repeat(async || call(&token).await).await
            }
            other => other,
        }
    }
}

async fn fetch_intermediates(
    transport: &Transport,
    root: &PinnedRoot,
    ca: Option<&str>,
) -> Result<Vec<Vec<u8>>, Failure> {
    let channel = channel(&root.url, ca, Some(Duration::from_secs(10)))?;
    let info = transport
        .repeat(async || {
            let mut client = Auth::new(channel.clone());
            Ok(client
                .get_service_info(GetServiceInfoRequest {})
                .await?
                .into_inner())
        })
        .await?
        .value;
    if info.domain != root.domain {
        return Err(Failure::Answer(format!(
            "{} speaks for {:?}, not for {}",
            root.url, info.domain, root.domain
        )));
    }
    Ok(info.intermediates.iter().map(|c| c.der.to_vec()).collect())
}
