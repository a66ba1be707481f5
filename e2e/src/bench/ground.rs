//! What is measured on: one PostgreSQL that keeps every promise, nodes of the Delivery Service as processes, people, and groups.

use std::{
    fs::OpenOptions,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chancery_proto::{
    auth::v1::GetServiceInfoResponse,
    delivery::v1::delivery_service_client::DeliveryServiceClient,
    token::{ACCESS_TOKEN_TYPE, AccessClaims, Confirmation, sign},
};
use delivery_service::store;
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ED25519};
use service_kit::{
    db::{Db, PoolOptions, TxError},
    local_postgres::{Cluster, ClusterOptions, Profile, SUPERUSER},
};
use sha2::{Digest as _, Sha256};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::programs::{Programs, arg};

/// The one domain.
pub const DOMAIN: &str = "bench.example";
const KEY_ID: &str = "bench";
const DATABASE: &str = "delivery";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A device with a token.
#[derive(Debug, Clone)]
pub struct Person {
    /// Its id.
    pub device: Uuid,
    /// Its user's.
    pub user: Uuid,
    /// For the Delivery Service.
    pub token: String,
}

impl Person {
    /// Somebody who never calls.
    pub fn silent() -> Self {
        Self {
            device: Uuid::new_v4(),
            user: Uuid::new_v4(),
            token: String::new(),
        }
    }
}

/// A process that ends with it.
#[derive(Debug)]
pub struct Running(pub Child);

/// One node's process.
#[derive(Debug)]
pub struct Node {
    process: Running,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill().and_then(|()| self.0.wait().map(|_| ()));
    }
}

/// Groups that were made alike.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Tells their ids from those of others.
    pub name: &'static str,
    /// How many.
    pub count: u32,
}

impl Groups {
    /// The id of one of them: random to look at, as real ones are.
    pub fn id(self, index: u32) -> Vec<u8> {
        Sha256::digest(format!("{}{index}", self.name))[..16].to_vec()
    }
}

/// The ground of a run.
pub struct Ground {
    /// The nodes that run.
    pub nodes: Vec<Node>,
    /// Members of every group.
    pub people: Vec<Person>,
    programs: Programs,
    cluster: Cluster,
    token_key: Vec<u8>,
    root_pem: PathBuf,
    domain: i16,
    folder: tempfile::TempDir,
}

impl Ground {
    /// Starts PostgreSQL and one node. Two people are members of every group.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start(programs: &Programs) -> anyhow::Result<Self> {
        Self::start_on(programs, Profile::Durable).await
    }

    /// The same on a PostgreSQL with this profile.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start_on(programs: &Programs, profile: Profile) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = ClusterOptions::new(folder.path().join("postgres"), profile);
        let cluster = tokio::task::block_in_place(|| Cluster::start(options))?;
        tokio::task::block_in_place(|| migrate(programs, &cluster, "delivery-service", DATABASE))?;
        let root_pem = folder.path().join("root.pem");
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = root.self_signed(&key)?;
        let body = STANDARD.encode(root.der());
        std::fs::write(
            &root_pem,
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"),
        )?;
        let token_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut ground = Self {
            nodes: Vec::new(),
            people: Vec::new(),
            programs: programs.clone(),
            cluster,
            token_key: token_key.serialize_der(),
            root_pem,
            domain: 0,
            folder,
        };
        ground.domain = ground.remember(token_key.public_key_raw()).await?;
        ground.people = ground.crowd(2).await?;
        ground.add_node().await?;
        Ok(ground)
    }

    /// People with good tokens.
    ///
    /// # Errors
    /// The database, or a token cannot be signed.
    pub async fn crowd(&self, size: u32) -> anyhow::Result<Vec<Person>> {
        let db = self.database(1)?;
        let now = store::groups::now(&db.client().await?).await? / 1_000_000;
        let person = |_| {
            let (device, user) = (Uuid::new_v4(), Uuid::new_v4());
            let claims = AccessClaims {
                iss: DOMAIN.into(),
                sub: user.to_string(),
                device: device.to_string(),
                aud: format!("ds:{DOMAIN}"),
                iat: now - 1,
                exp: now + 86_400,
                jti: Uuid::new_v4().to_string(),
                cnf: Confirmation { jkt: "t".into() },
            };
            let token = sign(ACCESS_TOKEN_TYPE, Some(KEY_ID), &claims, &self.token_key)
                .map_err(|error| anyhow::anyhow!("{error:?}"))?;
            Ok(Person {
                device,
                user,
                token,
            })
        };
        (0..size).map(person).collect()
    }

    /// One more node.
    ///
    /// # Errors
    /// It does not become ready; its log says why.
    pub async fn add_node(&mut self) -> anyhow::Result<()> {
        let address = free_address()?;
        let log = self
            .folder
            .path()
            .join(format!("node-{}.log", self.nodes.len()));
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = self.programs.command("delivery-service");
        let database = self.cluster.url(DATABASE, "delivery_app");
        command.args(["serve", "--domain", DOMAIN, "--database-url", &database]);
        command.args(["--listen", &address.to_string(), "--auth-service"]);
        command.arg(format!(
            "domain={DOMAIN},url=http://127.0.0.1:9,root={}",
            arg(&self.root_pem)
        ));
        // A long run outlives what is believed of a feed that nobody serves.
        command.args(["--feed-max-age-seconds", "1000000"]);
        let child = command.stdout(Stdio::null()).stderr(log).spawn()?;
        self.nodes.push(Node {
            process: Running(child),
            address,
        });
        let until = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < until, "the node does not become ready");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Starts an Authentication Service on the same PostgreSQL, for an operator; its process, and the socket of its
    /// admin listener.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn add_auth_service(&self) -> anyhow::Result<(Running, PathBuf)> {
        let (name, folder) = ("auth", self.folder.path());
        tokio::task::block_in_place(|| {
            migrate(&self.programs, &self.cluster, "auth-service", name)
        })?;
        let admin = folder.join("admin.sock");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("auth.log"))?;
        let mut command = self.programs.command("auth-service");
        command.args(["serve", "--domain", DOMAIN, "--delivery-domain", DOMAIN]);
        command.args(["--database-url", &self.cluster.url(name, "auth_app")]);
        command.args(["--listen", &free_address()?.to_string()]);
        command.args(["--listen-admin", &format!("unix:{}", arg(&admin))]);
        command.args(["--keys", &arg(&folder.join("keys"))]);
        let running = Running(command.stdout(Stdio::null()).stderr(log).spawn()?);
        let until = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&admin).is_err() {
            ensure!(
                Instant::now() < until,
                "the Authentication Service does not become ready"
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok((running, admin))
    }

    /// A connection of its own to a node.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn client(&self, node: usize) -> anyhow::Result<DeliveryServiceClient<Channel>> {
        let url = format!("http://{}", self.address(node)?);
        Ok(DeliveryServiceClient::connect(url).await?)
    }

    /// Connections of its own, as a node has them.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn database(&self, connections: usize) -> anyhow::Result<Db> {
        let options = PoolOptions {
            pool_connections_items: connections,
            pool_wait_millis: 60_000,
            ..PoolOptions::default()
        };
        Db::connect(&self.cluster.url(DATABASE, SUPERUSER), &options)
    }

    /// What the first node, and PostgreSQL with all its processes, have used of the CPU so far.
    ///
    /// # Errors
    /// `/proc` does not say.
    pub fn cpu(&self) -> anyhow::Result<[Duration; 2]> {
        let node = self.nodes.first().context("no node")?;
        let processes = service_kit::local_postgres::in_directory(self.cluster.data_dir());
        let mut postgres = Duration::ZERO;
        for pid in processes {
            // One may end meanwhile.
            postgres += cpu_of(&pid.to_string()).unwrap_or_default();
        }
        Ok([cpu_of(&node.process.0.id().to_string())?, postgres])
    }

    /// Memory of the first node's process that is not shared or swapped out, in KiB.
    ///
    /// # Errors
    /// `/proc` does not say.
    pub fn memory_kib(&self) -> anyhow::Result<f64> {
        let node = self.nodes.first().context("no node")?;
        super::large::ran::memory_kib(node.process.0.id())
    }

    /// Where a node listens.
    ///
    /// # Errors
    /// There is no such node.
    pub fn address(&self, node: usize) -> anyhow::Result<SocketAddr> {
        Ok(self.nodes.get(node).context("no such node")?.address)
    }

    /// Makes groups in which all of `members` are.
    ///
    /// # Errors
    /// The database.
    pub async fn populate(&self, groups: Groups, members: &[Person]) -> anyhow::Result<()> {
        let devices: Vec<Uuid> = members.iter().map(|p| p.device).collect();
        let users: Vec<Uuid> = members.iter().map(|p| p.user).collect();
        let db = self.database(1)?;
        let client = db.client().await?;
        let ids = "substr(sha256(convert_to($1::text || i, 'UTF8')), 1, 16)";
        let count = i32::try_from(groups.count)? - 1;
        client
            .execute(
                &format!(
                    "/* bench::groups */ INSERT INTO groups (group_id, suite, creator_domain, creator_device, create_hash, created_at) \
                     SELECT {ids}, 1, $2::smallint, $3::uuid, sha256(''), now() FROM generate_series(0, $4::int) i"
                ),
                &[&groups.name, &self.domain, &devices.first(), &count],
            )
            .await?;
        client
            .execute(
                &format!(
                    "/* bench::heads */ INSERT INTO group_heads (group_id, state, head_seq, epoch, epoch_seq, floor_seq, settled_seq, roster_seq, \
                     past_epochs, external_join, chain, last_at) \
                     SELECT {ids}, 1, 0, 0, 0, 0, 0, 0, 1, 1, decode(repeat('00', 32), 'hex'), now() FROM generate_series(0, $2::int) i"
                ),
                &[&groups.name, &count],
            )
            .await?;
        client
            .execute(
                "/* bench::known_devices */ INSERT INTO devices (domain_id, device_id, user_id) \
                 SELECT $1::smallint, m.device, m.person FROM unnest($2::uuid[], $3::uuid[]) AS m(device, person) ON CONFLICT DO NOTHING",
                &[&self.domain, &devices, &users],
            )
            .await?;
        client
            .execute(
                &format!(
                    "/* bench::members */ INSERT INTO members (group_id, domain_id, device_id, user_id, joined_seq) \
                     SELECT {ids}, $2::smallint, m.device, m.person, 0 FROM generate_series(0, $3::int) i, unnest($4::uuid[], $5::uuid[]) AS m(device, person)"
                ),
                &[&groups.name, &self.domain, &count, &devices, &users],
            )
            .await?;
        client.batch_execute("VACUUM ANALYZE").await?;
        Ok(())
    }

    /// Which of `groups` is the `nth` of the device at `index`.
    pub fn spread_index(groups: Groups, index: u32, nth: u32, each: u32) -> u32 {
        (index + nth * (groups.count / each)) % groups.count
    }

    /// Makes each of `people` a member of `each` of some groups, and as many of each group.
    ///
    /// # Errors
    /// The database.
    pub async fn spread(&self, groups: Groups, people: &[Person], each: u32) -> anyhow::Result<()> {
        let devices: Vec<Uuid> = people.iter().map(|p| p.device).collect();
        let users: Vec<Uuid> = people.iter().map(|p| p.user).collect();
        let db = self.database(1)?;
        let client = db.client().await?;
        let (last, step) = (
            i32::try_from(each)? - 1,
            i32::try_from(groups.count / each)?,
        );
        let count = i32::try_from(groups.count)?;
        let places = "SELECT substr(sha256(convert_to($1::text || ((p.n - 1 + k * $2::int) % $3::int), 'UTF8')), 1, 16) AS id, p.device, p.person \
                      FROM unnest($4::uuid[], $5::uuid[]) WITH ORDINALITY AS p(device, person, n), generate_series(0, $6::int) k";
        let members = format!(
            "/* bench::spread */ INSERT INTO members (group_id, domain_id, device_id, user_id, joined_seq) SELECT id, $7::smallint, device, person, 0 FROM ({places}) s"
        );
        let indexed = format!(
            "/* bench::spread */ INSERT INTO device_groups (domain_id, device_id, group_id, seq, member) \
             SELECT $7::smallint, device, id, 0, person IS NOT NULL FROM ({places}) s"
        );
        for sql in [members, indexed] {
            client
                .execute(
                    &sql,
                    &[
                        &groups.name,
                        &step,
                        &count,
                        &devices,
                        &users,
                        &last,
                        &self.domain,
                    ],
                )
                .await?;
        }
        Ok(client.batch_execute("VACUUM ANALYZE").await?)
    }

    /// The domain's number.
    pub fn domain(&self) -> i16 {
        self.domain
    }

    /// Every figure begins with an empty log, behind a checkpoint: with indexes of the same depth, and the same page images to write.
    ///
    /// # Errors
    /// The database.
    pub async fn fresh(&self) -> anyhow::Result<()> {
        let db = self.database(1)?;
        let client = db.client().await?;
        // Heads before the log, as writers lock them: what was under way when a figure ended may still be written.
        let reset = "BEGIN; LOCK TABLE group_heads; TRUNCATE log; UPDATE group_heads SET head_seq = 0, chain = decode(repeat('00', 32), 'hex') WHERE head_seq > 0; COMMIT";
        client.batch_execute(reset).await?;
        for sql in ["VACUUM FULL group_heads", "VACUUM ANALYZE", "CHECKPOINT"] {
            client.batch_execute(sql).await?;
        }
        Ok(())
    }

    /// Octets of WAL that were written so far.
    ///
    /// # Errors
    /// The database.
    pub async fn wal_bytes(&self) -> anyhow::Result<f64> {
        let db = self.database(1)?;
        let sql = "/* bench::wal_bytes */ SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8";
        Ok(db.client().await?.query_one(sql, &[]).await?.get(0))
    }

    /// The Authentication Service is down, and known from before. Returns the domain's number.
    async fn remember(&self, token_key: &[u8]) -> anyhow::Result<i16> {
        let info = GetServiceInfoResponse {
            domain: DOMAIN.into(),
            token_keys_jwks: serde_json::json!({"keys": [{
                "kty": "OKP", "crv": "Ed25519", "kid": KEY_ID, "x": URL_SAFE_NO_PAD.encode(token_key),
            }]})
            .to_string(),
            ..GetServiceInfoResponse::default()
        };
        let bytes = info.encode_to_vec();
        let db = self.database(1)?;
        let remembered = db.run_tx("remember", move |tx| {
            let bytes = bytes.clone();
            Box::pin(async move {
                let domain = store::devices::domain_id(tx, DOMAIN).await?;
                store::devices::remember_auth_service(tx, domain, &bytes).await?;
                Ok::<_, TxError<std::convert::Infallible>>(domain)
            })
        });
        remembered
            .await
            .map_err(|error| anyhow::anyhow!("{error:?}"))
    }
}

fn migrate(
    programs: &Programs,
    cluster: &Cluster,
    program: &str,
    database: &str,
) -> anyhow::Result<()> {
    let (owner, app) = (format!("{database}_owner"), format!("{database}_app"));
    cluster.ensure_role(&owner)?;
    cluster.ensure_role(&app)?;
    cluster.ensure_database(database, &owner, &[&app])?;
    let mut migrate = programs.command(program);
    let url = cluster.url(database, &owner);
    migrate.args(["migrate", "--database-url", &url, "--app-role", &app]);
    let output = migrate.output()?;
    if !output.status.success() {
        bail!("migrate: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A loopback port that nobody listens on.
///
/// # Errors
/// There is none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// User and system time of a process, from fields 14 and 15 of `/proc/<pid>/stat`.
///
/// # Errors
/// `/proc` does not say.
pub fn cpu_of(pid: &str) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold blanks.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = [11, 12]
        .iter()
        .filter_map(|index| fields.get(*index)?.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_secs_f64(
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    ))
}
