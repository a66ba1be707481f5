//! An Authentication Service on a database of its own, and devices that talk to it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part"
)]

use std::time::Duration;

use auth_service::{Config, Listeners, MIGRATIONS, serve};
use chancery_proto::{
    auth::v1::{
        admin_service_client::AdminServiceClient, auth_service_client::AuthServiceClient, *,
    },
    certificate::{Anchors, device_uri},
    common::v1::{DeviceRef, Reason, UserRef},
    signed,
    status::Refusal,
    token::{ASSERTION_TYPE, AssertionClaims, sign},
};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use ring::signature::Ed25519KeyPair;
use service_kit::{
    db::{Db, PoolOptions},
    lifecycle::{Shutdown, spawn_short},
    listen::bind,
    test_db::TestDb,
};
use tonic::{Request, Status, transport::Channel};
use uuid::Uuid;

pub const DOMAIN: &str = "interior.example";
pub const DS: &str = "ds:interior.example";
pub const AS: &str = "as:interior.example";

pub struct World {
    pub db: TestDb,
    pub keys: tempfile::TempDir,
    pub nodes: Vec<Node>,
}

pub struct Node {
    pub client: AuthServiceClient<Channel>,
    pub admin: AdminServiceClient<Channel>,
    pub shutdown: Shutdown,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.abort();
    }
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

pub fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

impl World {
    /// `nodes` services on one database and one folder of keys.
    pub async fn start(nodes: usize, options: &[&str]) -> Self {
        let mut world = Self {
            db: TestDb::create(&MIGRATIONS).await,
            keys: tempfile::tempdir().unwrap(),
            nodes: Vec::new(),
        };
        for _ in 0..nodes {
            let node = world.node(options).await;
            world.nodes.push(node);
        }
        world
    }

    async fn node(&self, options: &[&str]) -> Node {
        let (node, served) = self.serve(options).await;
        spawn_short(async move { served.await.unwrap() });
        node
    }

    /// A node, and the future that serves until its shutdown.
    pub async fn serve(
        &self,
        options: &[&str],
    ) -> (
        Node,
        impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        use clap::Parser as _;
        let keys = self.keys.path().to_str().unwrap();
        let mut args = vec!["x", "--domain", DOMAIN, "--keys", keys];
        args.extend(["--delivery-domain", DOMAIN, "--feed-poll-millis", "20"]);
        args.extend(options);
        let config = Cli::parse_from(args).config;
        let any = "127.0.0.1:0".parse().unwrap();
        let public = bind(&any, None, false).await.unwrap();
        let admin = bind(&any, None, false).await.unwrap();
        let channel = |url: String| {
            Channel::from_shared(url)
                .unwrap()
                .timeout(Duration::from_secs(30))
                .connect_lazy()
        };
        let shutdown = Shutdown::new();
        let node = Node {
            client: AuthServiceClient::new(channel(public.url())),
            admin: AdminServiceClient::new(channel(admin.url())),
            shutdown: shutdown.clone(),
        };
        let listeners = Listeners {
            public,
            admin,
            ops: Some(bind(&any, None, false).await.unwrap()),
        };
        let db = Db::connect(&self.db.url(), &PoolOptions::default()).unwrap();
        (node, serve(listeners, config, db, shutdown))
    }

    pub fn client(&self) -> AuthServiceClient<Channel> {
        self.nodes[0].client.clone()
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        self.nodes[0].admin.clone()
    }

    pub async fn invite(&self, handle: &str) -> String {
        let request = CreateInvitationRequest {
            handle: handle.into(),
            display_name: format!("Person {handle}"),
            organisation: "Interior".into(),
            valid_seconds: 0,
        };
        let made = self.admin().create_invitation(request).await.unwrap();
        made.into_inner().code
    }

    /// The pinned root and what the service says of itself.
    pub async fn anchors(&self) -> Anchors {
        let info = self
            .client()
            .get_service_info(GetServiceInfoRequest {})
            .await
            .unwrap()
            .into_inner();
        let intermediates: Vec<_> = info.intermediates.iter().map(|c| c.der.to_vec()).collect();
        Anchors::pinned(&info.roots[0].der, &intermediates, now()).unwrap()
    }

    /// Changes the database as its owner.
    pub async fn sql(&self, sql: &str) {
        let db = Db::connect(&self.db.owner_url(), &PoolOptions::default()).unwrap();
        db.client().await.unwrap().batch_execute(sql).await.unwrap();
    }
}

/// A key that may become a device.
pub struct Key {
    pub csr: Vec<u8>,
    pub pair: Ed25519KeyPair,
    pub pkcs8: Vec<u8>,
}

impl Key {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        Self {
            csr: csr.der().to_vec(),
            pkcs8: key.serialize_der(),
            pair: Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.serialize_der()).unwrap(),
        }
    }

    pub fn sign(&self, label: &str, content: &[u8]) -> Vec<u8> {
        let bytes = signed::to_be_signed(label, content);
        self.pair.sign(&bytes).as_ref().to_vec()
    }

    pub fn request(&self, code: &str, time: i64) -> EnrollRequest {
        let content = signed::enroll(DOMAIN, code, &self.csr, time);
        EnrollRequest {
            by: Some(enroll_request::By::Invitation(code.into())),
            credentials: vec![Credential {
                scheme: 0x0807,
                csr: self.csr.clone().into(),
                proof: self.sign(signed::ENROLL, &content).into(),
                proof_time: time,
            }],
            device_name: "laptop".into(),
        }
    }
}

/// An enrolled device.
pub struct Device {
    pub key: Key,
    pub user: UserRef,
    pub device: DeviceRef,
    pub certificate: Vec<u8>,
}

impl Device {
    pub async fn enroll(world: &World, handle: &str) -> Self {
        let code = world.invite(handle).await;
        let key = Key::new();
        let request = key.request(&code, now());
        let answer = world.client().enroll(request).await.unwrap().into_inner();
        Self {
            key,
            user: answer.user.unwrap(),
            device: answer.device.unwrap(),
            certificate: answer.certificates[0].to_vec(),
        }
    }

    pub fn uri(&self) -> String {
        device_uri(DOMAIN, Uuid::from_slice(&self.device.id).unwrap())
    }

    pub fn claims(&self) -> AssertionClaims {
        AssertionClaims {
            iss: self.uri(),
            sub: self.uri(),
            aud: AS.into(),
            iat: now(),
            exp: now() + 60,
            jti: Uuid::new_v4().to_string(),
        }
    }

    pub fn assertion(&self, claims: &AssertionClaims) -> String {
        sign(ASSERTION_TYPE, None, claims, &self.key.pkcs8).unwrap()
    }

    pub async fn token(&self, world: &World, audience: &str) -> Result<String, Status> {
        let request = IssueTokenRequest {
            client_assertion: self.assertion(&self.claims()),
            audience: audience.into(),
        };
        let answer = world.client().issue_token(request).await?;
        Ok(answer.into_inner().access_token)
    }

    /// The request with a good token of this device.
    pub async fn by<T>(&self, world: &World, request: T) -> Request<T> {
        with_token(request, &self.token(world, AS).await.unwrap())
    }

    pub fn revocation(&self, device: &DeviceRef, expires_at: i64) -> RevokeDeviceRequest {
        let id: [u8; 16] = device.id.as_ref().try_into().unwrap();
        let content = signed::revoke((DOMAIN, &id), expires_at);
        RevokeDeviceRequest {
            device: Some(device.clone()),
            expires_at,
            signature: self.key.sign(signed::REVOKE, &content).into(),
        }
    }
}

pub fn with_token<T>(request: T, token: &str) -> Request<T> {
    let mut request = Request::new(request);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub fn reason(status: &Status) -> Reason {
    Refusal::from_status(status)
        .reason
        .unwrap_or_else(|| panic!("no reason in {status:?}"))
}
