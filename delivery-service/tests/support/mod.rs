//! A Delivery Service on a database of its own, devices with certificates, and a group whose MLS bytes are made by hand.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part"
)]

pub mod forge;
pub mod key_packages;
pub mod scripted_auth;
pub mod trio;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    auth::v1::{CertificateInfo, GetServiceInfoResponse},
    common::v1::{GroupRef, Reason},
    delivery::v1::{delivery_service_client::DeliveryServiceClient, *},
    key_package::KeyPackage,
    policy::Policy,
    status::Refusal,
};
use chancery_proto::{commit_info::CommitInfo, tree::Tree};
use delivery_service::{
    Config, Listeners, MIGRATIONS, serve_knowing, store,
    upkeep::status_feed::{Cursor, Kinds},
};
use forge::{Authority, DOMAIN, Device};
use prost::Message as _;
use service_kit::{
    db::{Db, PoolOptions, TxError},
    lifecycle::{Shutdown, spawn_short},
    listen::{ListenAddr, bind},
    test_db::TestDb,
};
use tonic::{Request, Status, transport::Channel};
use uuid::Uuid;

pub type Client = DeliveryServiceClient<Channel>;

pub struct World {
    pub db: TestDb,
    pub authority: Authority,
    pub nodes: Vec<Node>,
    turn: AtomicUsize,
    /// Where the Authentication Service is looked for.
    auth_url: String,
    /// PEM file of the pinned root.
    pub root: tempfile::NamedTempFile,
}

/// Where nobody listens.
const NOWHERE: &str = "http://127.0.0.1:9";

pub struct Node {
    pub client: Client,
    /// `/readyz` and `/metrics`.
    pub ops_url: String,
    /// Where they are served.
    pub ops: ListenAddr,
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

pub fn pem(der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

impl World {
    /// `nodes` services on one database; the Authentication Service is down and known from before.
    pub async fn start(nodes: usize, options: &[&str]) -> Self {
        let mut world = Self::beside(NOWHERE, Authority::new()).await;
        remember(&world.db, &world.authority).await;
        for _ in 0..nodes {
            let node = world.node(options).await;
            world.nodes.push(node);
        }
        world
    }

    /// Without nodes yet, on a fresh database, beside an Authentication Service that is at this address.
    pub async fn beside(auth_url: &str, authority: Authority) -> Self {
        let root = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(root.path(), pem(&authority.root_der)).unwrap();
        Self {
            db: TestDb::create(&MIGRATIONS).await,
            authority,
            nodes: Vec::new(),
            turn: AtomicUsize::new(0),
            auth_url: auth_url.to_owned(),
            root,
        }
    }

    pub async fn node(&self, options: &[&str]) -> Node {
        self.node_knowing(Kinds::ALL, options).await
    }

    /// A node of a program that knows these kinds of status.
    pub async fn node_knowing(&self, kinds: Kinds, options: &[&str]) -> Node {
        let (node, served) = self.serve_knowing(kinds, options).await;
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
        self.serve_knowing(Kinds::ALL, options).await
    }

    async fn serve_knowing(
        &self,
        kinds: Kinds,
        options: &[&str],
    ) -> (
        Node,
        impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        use clap::Parser as _;
        let (url, root) = (&self.auth_url, self.root.path().display());
        let auth = format!("domain={DOMAIN},url={url},root={root}");
        let mut args = vec!["x", "--domain", DOMAIN, "--auth-service", &auth];
        if !options.contains(&"--head-poll-millis") {
            args.extend(["--head-poll-millis", "20"]);
        }
        args.extend(options);
        let config = Cli::parse_from(args).config;
        let public = bind(&"127.0.0.1:0".parse().unwrap(), None, false)
            .await
            .unwrap();
        let url = public.url();
        let ops = bind(&"127.0.0.1:0".parse().unwrap(), None, false)
            .await
            .unwrap();
        let ops_url = ops.url();
        let pool = PoolOptions {
            pool_connections_items: 8,
            ..PoolOptions::default()
        };
        let db = Db::connect(&self.db.url(), &pool).unwrap();
        let shutdown = Shutdown::new();
        let ops_at = ops.local_addr().clone();
        let listeners = Listeners {
            public,
            ops: Some(ops),
        };
        let served = serve_knowing(listeners, config, db, shutdown.clone(), kinds);
        let channel = Channel::from_shared(url)
            .unwrap()
            .timeout(Duration::from_secs(30))
            .connect_lazy();
        let client = Client::new(channel).max_encoding_message_size(64 << 20);
        let node = Node {
            client,
            ops_url,
            ops: ops_at,
            shutdown,
        };
        (node, served)
    }

    /// The nodes take turns: what one wrote, the other must know at once.
    pub fn client(&self) -> Client {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.nodes[turn % self.nodes.len()].client.clone()
    }

    pub fn device(&self, user: Uuid) -> Device {
        self.authority.device(user, 30)
    }

    /// The request with a good token of this device.
    pub fn by<T>(&self, device: &Device, request: T) -> Request<T> {
        with_token(
            request,
            &self.authority.token(device, "ds:interior.example", 300),
        )
    }

    /// Publishes one KeyPackage; its ref.
    pub async fn publish(&self, device: &Device) -> Vec<u8> {
        let package = device.key_package(1, -60, 3_600, false);
        let request = PublishKeyPackagesRequest {
            key_packages: vec![package.clone().into()],
            ..PublishKeyPackagesRequest::default()
        };
        let request = self.by(device, request);
        self.client().publish_key_packages(request).await.unwrap();
        let package = KeyPackage::parse(&package, 100_000).unwrap();
        *device.published.lock().unwrap() = Some(package.leaf.encoded());
        package.reference().unwrap()
    }

    /// Asks to leave; the entry's seq.
    pub async fn leave(&self, device: &Device, group: &Group, joined_seq: u64) -> u64 {
        let expires_at = time::OffsetDateTime::now_utc().unix_timestamp() + 3_600;
        let content = chancery_proto::signed::leave(
            (DOMAIN, &group.id),
            (DOMAIN, device.device.as_bytes()),
            joined_seq,
            expires_at,
        );
        let bytes = chancery_proto::signed::to_be_signed(chancery_proto::signed::LEAVE, &content);
        let request = LeaveGroupRequest {
            group: Some(group.reference()),
            message_id: Uuid::new_v4().as_bytes().to_vec().into(),
            joined_seq,
            expires_at,
            signature: device.sign(&bytes).into(),
        };
        let left = self.client().leave_group(self.by(device, request)).await;
        left.unwrap().into_inner().seq
    }

    /// Records a revocation as the status feed does.
    pub async fn revoke(&self, device: &Device) {
        let db = Db::connect(&self.db.url(), &PoolOptions::default()).unwrap();
        let id = device.device;
        db.run_tx("revoke", move |tx| {
            Box::pin(async move {
                let domain = store::devices::domain_id(tx, DOMAIN).await?;
                let key = delivery_service::ordering::group::DeviceKey { domain, device: id };
                store::revocations::revoke(tx, key, b"evidence").await?;
                let applied = store::status_feeds::applied(tx, domain).await?.unwrap();
                let cursor = Cursor {
                    seq: applied.cursor.seq + 1,
                    ..applied.cursor
                };
                store::status_feeds::advance(tx, domain, &cursor).await?;
                Ok::<_, TxError<delivery_service::error::Error>>(())
            })
        })
        .await
        .unwrap();
    }
}

async fn remember(db: &TestDb, authority: &Authority) {
    let jwks = format!(
        r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","x":"{}"}}]}}"#,
        URL_SAFE_NO_PAD.encode(&authority.token_key)
    );
    let info = GetServiceInfoResponse {
        domain: DOMAIN.into(),
        token_keys_jwks: jwks,
        intermediates: vec![CertificateInfo {
            der: authority.intermediate_der.clone().into(),
            ..CertificateInfo::default()
        }],
        ..GetServiceInfoResponse::default()
    };
    let db = Db::connect(&db.url(), &PoolOptions::default()).unwrap();
    let bytes = info.encode_to_vec();
    db.run_tx("remember", move |tx| {
        let bytes = bytes.clone();
        Box::pin(async move {
            let domain = store::devices::domain_id(tx, DOMAIN).await?;
            store::devices::remember_auth_service(tx, domain, &bytes).await?;
            Ok::<_, TxError<delivery_service::error::Error>>(())
        })
    })
    .await
    .unwrap();
}

pub fn with_token<T>(request: T, token: &str) -> Request<T> {
    let mut request = Request::new(request);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// The status line and the body of a GET.
pub async fn get(url: &str, path: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

pub fn reason(status: &Status) -> Reason {
    Refusal::from_status(status)
        .reason
        .unwrap_or_else(|| panic!("no reason in {status:?}"))
}

/// What a member would know of the group, kept by the test.
#[derive(Clone)]
pub struct Group {
    pub id: Vec<u8>,
    pub epoch: u64,
    pub epoch_seq: u64,
    pub seq: u64,
    pub chain: [u8; 32],
    pub tree: Tree,
    pub policy: Policy,
}

impl Group {
    /// Not created yet.
    pub fn blank(creator: &Device) -> Self {
        Self {
            id: Uuid::new_v4().as_bytes().repeat(2),
            epoch: 0,
            epoch_seq: 0,
            seq: 0,
            chain: [0; 32],
            tree: forge::tree(&[creator], 0),
            policy: Policy::for_domain(DOMAIN),
        }
    }

    pub async fn create(world: &World, creator: &Device) -> Self {
        let group = Self::blank(creator);
        let request = world.by(creator, group.create_request());
        world.client().create_group(request).await.unwrap();
        group
    }

    pub fn create_request(&self) -> CreateGroupRequest {
        CreateGroupRequest {
            group: Some(self.reference()),
            suite: 1,
            group_info: forge::group_info(&self.context(0, &self.tree), &self.tree).into(),
            tree: Some(self.tree.to_update()),
            ..CreateGroupRequest::default()
        }
    }

    pub fn reference(&self) -> GroupRef {
        GroupRef {
            domain: DOMAIN.into(),
            id: self.id.clone().into(),
        }
    }

    pub fn context(&self, epoch: u64, tree: &Tree) -> Vec<u8> {
        forge::group_context(&self.id, epoch, tree, &self.policy)
    }

    pub fn message(&self, id: Uuid, content_type: u8) -> SendMessageRequest {
        SendMessageRequest {
            group: Some(self.reference()),
            message_id: id.as_bytes().to_vec().into(),
            message: forge::private(&self.id, self.epoch, content_type, &forge::data(id, None))
                .into(),
            epoch_seq: self.epoch_seq,
            ..SendMessageRequest::default()
        }
    }

    pub fn info(&self, added: &[&Device], removed: &[&Device]) -> CommitInfo {
        let sorted = |devices: &[&Device]| {
            let mut members: Vec<_> = devices.iter().map(|d| d.member()).collect();
            members.sort();
            members
        };
        CommitInfo {
            added: sorted(added),
            removed: sorted(removed),
            seen_seq: self.seq,
            seen_chain: self.chain,
            ..CommitInfo::default()
        }
    }

    /// A member's Commit after which the tree is `after`.
    pub fn commit(&self, info: CommitInfo, refs: &[Vec<u8>], after: &Tree) -> SubmitCommitRequest {
        let id = Uuid::new_v4();
        let commit = forge::private(&self.id, self.epoch, 3, &forge::data(id, Some(info)));
        let welcomes = match refs {
            [] => vec![],
            refs => vec![forge::welcome(refs).into()],
        };
        self.bundle(CommitBundle {
            message_id: id.as_bytes().to_vec().into(),
            commit: commit.into(),
            welcomes,
            group_info: forge::group_info(&self.context(self.epoch + 1, after), after).into(),
            tree: Some(after.to_update()),
            ..CommitBundle::default()
        })
    }

    /// An external Commit by which a member comes back to its place, and the tree after it.
    pub fn comes_back(&self, by: &Device, place: u32) -> (SubmitCommitRequest, Tree) {
        let leaf = by.external_leaf(&self.id, place);
        let external = forge::External {
            removes: vec![place],
            leaf,
            ..forge::External::default()
        };
        self.external(by, place, &self.info(&[by], &[by]), external)
    }

    /// Any external Commit that puts its leaf at a place, and the tree after it.
    pub fn external(
        &self,
        by: &Device,
        place: u32,
        info: &CommitInfo,
        external: forge::External,
    ) -> (SubmitCommitRequest, Tree) {
        let id = Uuid::new_v4();
        let data = forge::data(id, Some(info.clone()));
        let context = self.context(self.epoch, &self.tree);
        let commit = by.external_commit((&self.id, self.epoch), &data, &context, &external);
        let mut tree = self.tree.clone();
        if place >= tree.width() {
            tree.resize((place + 1).next_power_of_two()).unwrap();
        }
        let node = [&[1, 1], external.leaf.as_slice()].concat();
        tree.set(2 * place, Some(&node)).unwrap();
        let after = self.context(self.epoch + 1, &tree);
        let request = self.bundle(CommitBundle {
            message_id: id.as_bytes().to_vec().into(),
            commit: commit.into(),
            group_info: forge::group_info(&after, &tree).into(),
            tree: Some(tree.update_since(&self.tree)),
            ..CommitBundle::default()
        });
        (request, tree)
    }

    pub fn bundle(&self, bundle: CommitBundle) -> SubmitCommitRequest {
        SubmitCommitRequest {
            group: Some(self.reference()),
            bundles: vec![bundle],
            epoch_seq: self.epoch_seq,
        }
    }

    /// Takes over the answer to an accepted Commit.
    pub fn accepted(&mut self, result: &CommitResult, tree: Tree) {
        self.epoch = result.epoch;
        self.epoch_seq = result.epoch_seq;
        self.seq = result.seq;
        self.chain = result.chain.as_ref().try_into().unwrap();
        self.tree = tree;
    }

    /// Takes over the answer to an accepted message.
    pub fn sent(&mut self, sent: &SendMessageResponse) {
        self.seq = sent.seq;
        self.chain = sent.chain.as_ref().try_into().unwrap();
    }

    /// Adds published devices in one Commit.
    pub async fn add(
        &mut self,
        world: &World,
        by: &Device,
        everybody: &[&Device],
        added: &[&Device],
    ) -> CommitResult {
        let mut refs = Vec::new();
        for device in added {
            refs.push(world.publish(device).await);
        }
        let tree = forge::tree(everybody, 0);
        let request = self.commit(self.info(added, &[]), &refs, &tree);
        let result = submit(world, by, request).await.unwrap();
        self.accepted(&result, tree);
        for device in added {
            // From here on its leaf is one that it wrote itself.
            device.published.lock().unwrap().take();
        }
        result
    }

    /// Removes devices in one Commit; the tree keeps its width.
    pub async fn remove(
        &mut self,
        world: &World,
        by: &Device,
        left: &[&Device],
        removed: &[&Device],
    ) -> CommitResult {
        let tree = forge::tree(left, 1);
        let request = self.commit(self.info(&[], removed), &[], &tree);
        let result = submit(world, by, request).await.unwrap();
        self.accepted(&result, tree);
        result
    }

    pub fn read(&self, after_seq: u64) -> ReadLogRequest {
        ReadLogRequest {
            group: Some(self.reference()),
            after_seq,
            ..ReadLogRequest::default()
        }
    }
}

pub async fn submit(
    world: &World,
    by: &Device,
    request: SubmitCommitRequest,
) -> Result<CommitResult, Status> {
    let response = world.client().submit_commit(world.by(by, request)).await?;
    Ok(response.into_inner().results.remove(0))
}

pub async fn send(
    world: &World,
    by: &Device,
    request: SendMessageRequest,
) -> Result<SendMessageResponse, Status> {
    let response = world.client().send_message(world.by(by, request)).await?;
    Ok(response.into_inner())
}

/// The whole log as this device sees it.
pub async fn log(world: &World, by: &Device, group: &Group) -> Result<Vec<Entry>, Status> {
    let request = world.by(by, group.read(0));
    let mut stream = world.client().read_log(request).await?.into_inner();
    let mut entries = Vec::new();
    while let Some(part) = stream.message().await? {
        entries.extend(part.entries.unwrap().entries);
    }
    Ok(entries)
}

/// A session of the database's owner.
pub async fn owner(world: &World) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&world.db.owner_url(), tokio_postgres::NoTls)
            .await
            .unwrap();
    spawn_short(connection);
    client
}

/// Holds a group's head as a Commit under way does.
pub async fn hold<'c>(
    client: &'c mut tokio_postgres::Client,
    group: &Group,
) -> tokio_postgres::Transaction<'c> {
    let held = client.transaction().await.unwrap();
    let sql = "SELECT 1 FROM group_heads WHERE group_id = $1 FOR NO KEY UPDATE";
    held.execute(sql, &[&group.id]).await.unwrap();
    held
}

/// Until so many sessions of this database wait for a lock.
pub async fn waiting(world: &World, sessions: i64) {
    let client = owner(world).await;
    loop {
        let row = client
            .query_one("SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = $1", &[&world.db.name()])
            .await
            .unwrap();
        if row.get::<_, i64>(0) >= sessions {
            return;
        }
        tokio::task::yield_now().await;
    }
}
