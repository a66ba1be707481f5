//! The server's side of a group of a hundred thousand: a node as a process, its PostgreSQL, and members of whom there is only what a server sees of them.
//! Commits, trees, Welcomes and messages go through gRPC and every check of a node; what only members could read is noise.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use chancery_proto::{
    commit_info::{CommitInfo, Member, MessageData},
    common::v1::GroupRef,
    delivery::v1::{
        CommitBundle, FetchTreeRequest, ListWelcomesRequest, SubmitCommitRequest,
        delivery_service_client::DeliveryServiceClient,
    },
    policy::{POLICY_EXTENSION, Policy},
    suite::Suite,
    tree::Tree,
    wire::Write as _,
};
use prost::Message as _;
use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ED25519, SanType};
use tonic::transport::Channel;
use uuid::Uuid;

use super::{node_bytes, of};
use crate::{
    bench::{
        ground::{DOMAIN, Ground, Groups, Person},
        load::{self, by},
        table::{Table, Target},
    },
    programs::Programs,
};

/// Devices that one Commit adds.
const PART: usize = 1_000;
/// Messages, and Commits that change one leaf, that are timed.
const TIMED: usize = 200;
const GROUP: Groups = Groups {
    name: "synthetic",
    count: 1,
};
const SMALL: Groups = Groups {
    name: "small",
    count: 1,
};
const SUITE: u16 = 1;
/// RFC 9420 section 6.
const COMMIT: u8 = 3;

struct World {
    ground: Ground,
    client: DeliveryServiceClient<Channel>,
    creator: Person,
    tree: Tree,
    /// Leaves that are taken.
    leaves: u32,
    epoch: u64,
    epoch_seq: u64,
    chain: [u8; 32],
    certify: Box<dyn Fn(Uuid, Uuid) -> anyhow::Result<Vec<u8>>>,
}

/// Makes the group and tells what it costs the server.
///
/// # Errors
/// Something does not start, or a refusal.
pub async fn measure(
    programs: &Programs,
    members: usize,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let mut world = World::begin(programs).await?;
    let name = |what: &str| format!("{members} members: {what}");
    let people = world.ground.crowd(u32::try_from(members - 1)?).await?;
    let before = world.ground.memory_kib()? / 1024.0;
    let wal = world.ground.wal_bytes().await?;
    let (mut commits, mut sends) = (Vec::new(), Vec::new());
    for part in people.chunks(PART) {
        stock(&world.ground, part).await?;
        commits.push(world.add(part).await?);
    }
    let tenth = (commits.len() / 10).max(1);
    let (mut first, mut last) = (
        commits[..tenth].to_vec(),
        commits[commits.len() - tenth..].to_vec(),
    );
    let (first, last) = (of(&mut first, 50), of(&mut last, 50));
    table.compare(
        &name("a Commit that adds 1,000, the last by the first ones"),
        last,
        "ms",
        first,
    );
    let wal = (world.ground.wal_bytes().await? - wal) / 1e6;
    table.report(&name("WAL of their creation"), wal, "MB");
    let mut changes = Vec::new();
    for n in 0..TIMED {
        let leaf = u32::try_from(n * members / TIMED)?;
        changes.push(world.update(leaf).await?);
    }
    table.report(
        &name("a Commit that changes one leaf, p50"),
        of(&mut changes, 50),
        "ms",
    );
    let person = people.last().context("nobody")?;
    let (creator, epoch) = (world.creator.clone(), world.epoch);
    // Settles the epoch, as somebody always does soon: until then a node asks before it writes.
    world.send(person, &GROUP.id(0), epoch).await?;
    for (group, epoch) in [(SMALL, 0), (GROUP, epoch)] {
        let mut times = Vec::new();
        for _ in 0..TIMED {
            times.push(world.send(&creator, &group.id(0), epoch).await?);
        }
        sends.push(of(&mut times, 50));
    }
    table.aim(
        &name("a message, p50, by a group of two"),
        sends[1],
        "ms",
        sends[0],
        Target::AtMost(1.2),
    );
    let (bytes, nodes, took) = world.fetch_tree(person).await?;
    table.aim(
        &name("a joiner's tree, by its nodes"),
        bytes as f64 / 1e6,
        "MB",
        nodes as f64 / 1e6,
        Target::AtMost(1.1),
    );
    table.report(&name("fetching it"), took.as_secs_f64() * 1e3, "ms");
    table.aim(
        &name("a joiner's Welcome, by 2 kB"),
        world.welcome_bytes(person).await? as f64 / 1e3,
        "kB",
        2.0,
        Target::AtMost(1.0),
    );
    let after = world.ground.memory_kib()? / 1024.0;
    table.compare(
        &name("memory of the node at the end, by before"),
        after,
        "MiB",
        before,
    );
    Ok(())
}

/// A KeyPackage of each, claimed already: only whose it is matters for a Welcome.
async fn stock(ground: &Ground, people: &[Person]) -> anyhow::Result<()> {
    let db = ground.database(1)?;
    let client = db.client().await?;
    let devices: Vec<Uuid> = people.iter().map(|p| p.device).collect();
    let users: Vec<Uuid> = people.iter().map(|p| p.user).collect();
    let domain = ground.domain();
    let sql = "/* bench::devices */ INSERT INTO devices (domain_id, device_id, user_id) SELECT $1::smallint, d, u FROM unnest($2::uuid[], $3::uuid[]) AS q(d, u)";
    client.execute(sql, &[&domain, &devices, &users]).await?;
    let sql = "/* bench::stock */ INSERT INTO key_packages (domain_id, device_id, ref, suite, last_resort, not_after, body, claim_id, claimed_at) \
               SELECT $1::smallint, d, uuid_send(d), 1, false, now() + interval '1 day', ''::bytea, d, now() FROM unnest($2::uuid[]) d";
    client.execute(sql, &[&domain, &devices]).await?;
    Ok(())
}

impl World {
    async fn begin(programs: &Programs) -> anyhow::Result<Self> {
        let ground = Ground::start(programs).await?;
        let two = ground.people.clone();
        ground.populate(SMALL, &two).await?;
        ground.populate(GROUP, &two[..1]).await?;
        let client = ground
            .client(0)
            .await?
            .max_encoding_message_size(usize::MAX);
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let issuer = Issuer::new(CertificateParams::default(), key);
        // The same key in all of them: a server does not use it, and its bytes weigh the same.
        let device_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certify = move |user: Uuid, device: Uuid| {
            let mut params = CertificateParams::default();
            let uris = [
                chancery_proto::certificate::user_uri(DOMAIN, user),
                chancery_proto::certificate::device_uri(DOMAIN, device),
            ];
            for uri in uris {
                params.subject_alt_names.push(SanType::URI(uri.try_into()?));
            }
            Ok(params.signed_by(&device_key, &issuer)?.der().to_vec())
        };
        let mut world = Self {
            creator: two.into_iter().next().context("nobody")?,
            client,
            ground,
            tree: Tree::blank(1)?,
            leaves: 0,
            epoch: 0,
            epoch_seq: 0,
            chain: chancery_proto::chain::start(),
            certify: Box::new(certify),
        };
        let creator = world.creator.clone();
        world.seat(&creator)?;
        Ok(world)
    }

    /// `optional<Node>` of a leaf.
    fn leaf(&self, person: &Person, salt: u8) -> anyhow::Result<Vec<u8>> {
        let mut leaf = vec![1, 1];
        leaf.put_vector(&[salt; 32]);
        leaf.put_vector(person.device.as_bytes());
        leaf.put(&2u16.to_be_bytes());
        let mut chain = Vec::new();
        chain.put_vector(&(self.certify)(person.user, person.device)?);
        leaf.put_vector(&chain);
        for list in [
            &1u16.to_be_bytes()[..],
            &1u16.to_be_bytes(),
            &POLICY_EXTENSION.to_be_bytes(),
            &[],
            &2u16.to_be_bytes(),
        ] {
            leaf.put_vector(list);
        }
        leaf.put(&[3]);
        leaf.put_vector(&[salt; 32]);
        leaf.put_vector(&[]);
        leaf.put_vector(&[6; 64]);
        Ok(leaf)
    }

    /// Puts a leaf at the right end.
    fn seat(&mut self, person: &Person) -> anyhow::Result<()> {
        let wanted = (self.leaves + 1).next_power_of_two();
        if wanted > self.tree.width() {
            self.tree.resize(wanted)?;
        }
        let leaf = self.leaf(person, 1)?;
        self.tree.set(self.leaves * 2, Some(&leaf))?;
        self.leaves += 1;
        Ok(())
    }

    async fn add(&mut self, people: &[Person]) -> anyhow::Result<f64> {
        let before = self.tree.clone();
        for person in people {
            self.seat(person)?;
        }
        let mut added: Vec<Member> = people
            .iter()
            .map(|person| Member {
                domain: DOMAIN.into(),
                user: *person.user.as_bytes(),
                device: *person.device.as_bytes(),
            })
            .collect();
        added.sort();
        let mut secrets = Vec::new();
        for person in people {
            secrets.put_vector(person.device.as_bytes());
            secrets.put_vector(&[3; 32]);
            secrets.put_vector(&[4; 84]);
        }
        let welcome = chancery_proto::welcome::assemble(SUITE, &secrets, &[5; 300]);
        self.commit(&before, added, Some(welcome)).await
    }

    /// The creator's Commit with a path, as far as a server sees: its leaf and the nodes above.
    async fn update(&mut self, salt: u32) -> anyhow::Result<f64> {
        let before = self.tree.clone();
        let creator = self.creator.clone();
        let salt = u8::try_from(salt % 251)?;
        let leaf = self.leaf(&creator, salt.wrapping_add(2))?;
        self.tree.set(0, Some(&leaf))?;
        let mut parent = vec![1, 2];
        parent.put_vector(&[salt.wrapping_add(2); 32]);
        parent.put_vector(&[salt; 32]);
        parent.put_vector(&[]);
        for level in 1..=self.tree.width().ilog2() {
            self.tree.set((1 << level) - 1, Some(&parent))?;
        }
        self.commit(&before, Vec::new(), None).await
    }

    /// Milliseconds until it was answered.
    async fn commit(
        &mut self,
        before: &Tree,
        added: Vec<Member>,
        welcome: Option<Vec<u8>>,
    ) -> anyhow::Result<f64> {
        let (id, group) = (Uuid::new_v4(), GROUP.id(0));
        let data = MessageData {
            message_id: Some(*id.as_bytes()),
            commit_info: Some(CommitInfo {
                added,
                seen_seq: self.epoch_seq,
                seen_chain: self.chain,
                ..CommitInfo::default()
            }),
        };
        let mut commit = vec![0, 1, 0, 2];
        commit.put_vector(&group);
        commit.put(&self.epoch.to_be_bytes());
        commit.put(&[COMMIT]);
        commit.put_vector(&data.encode());
        commit.put_vector(&[1; 28]);
        commit.put_vector(&[2; 2_500]);
        let request = SubmitCommitRequest {
            group: Some(reference()),
            epoch_seq: self.epoch_seq,
            bundles: vec![CommitBundle {
                message_id: id.as_bytes().to_vec().into(),
                commit: commit.into(),
                welcomes: welcome.into_iter().map(Into::into).collect(),
                group_info: self.group_info()?.into(),
                tree: Some(if before.width() == 1 {
                    self.tree.to_update()
                } else {
                    self.tree.update_since(before)
                }),
                ..CommitBundle::default()
            }],
        };
        let began = Instant::now();
        let answer = self
            .client
            .submit_commit(by(&self.creator, request)?)
            .await?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        let result = answer.into_inner().results.pop().context("no result")?;
        self.epoch += 1;
        self.epoch_seq = result.seq;
        self.chain = result.chain.as_ref().try_into()?;
        Ok(took)
    }

    /// MLSMessage(GroupInfo) of the next epoch.
    fn group_info(&self) -> anyhow::Result<Vec<u8>> {
        let suite = Suite::from_code(SUITE).context("suite 1 is not known")?;
        let mut info = vec![0, 1, 0, 4, 0, 1];
        info.put(&SUITE.to_be_bytes());
        info.put_vector(&GROUP.id(0));
        info.put(&(self.epoch + 1).to_be_bytes());
        info.put_vector(&self.tree.hash(suite));
        info.put_vector(&[5; 32]);
        let mut extensions = POLICY_EXTENSION.to_be_bytes().to_vec();
        extensions.put_vector(&Policy::for_domain(DOMAIN).encode());
        info.put_vector(&extensions);
        info.put_vector(&[]);
        info.put_vector(&[7; 32]);
        info.put(&0u32.to_be_bytes());
        info.put_vector(&[8; 64]);
        Ok(info)
    }

    /// Milliseconds of one message.
    async fn send(&mut self, sender: &Person, group: &[u8], epoch: u64) -> anyhow::Result<f64> {
        let mut request = load::request_in(group.to_vec(), epoch);
        if epoch > 0 {
            request.epoch_seq = self.epoch_seq;
        }
        let began = Instant::now();
        self.client.send_message(by(sender, request)?).await?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Bytes of the answer, bytes of the nodes in it, and how long it took.
    async fn fetch_tree(&mut self, person: &Person) -> anyhow::Result<(usize, usize, Duration)> {
        let request = FetchTreeRequest {
            group: Some(reference()),
            epoch_seq: self.epoch_seq,
            current: false,
        };
        let began = Instant::now();
        let mut parts = self
            .client
            .fetch_tree(by(person, request)?)
            .await?
            .into_inner();
        let (mut bytes, mut nodes) = (0, 0);
        while let Some(part) = parts.message().await? {
            bytes += part.encoded_len();
            nodes += node_bytes(&part);
        }
        Ok((bytes, nodes, began.elapsed()))
    }

    async fn welcome_bytes(&mut self, person: &Person) -> anyhow::Result<usize> {
        let request = by(person, ListWelcomesRequest::default())?;
        let mut parts = self.client.list_welcomes(request).await?.into_inner();
        let part = parts.message().await?.context("no Welcome")?;
        ensure!(part.welcomes.len() == 1, "{} Welcomes", part.welcomes.len());
        Ok(part.welcomes[0].encoded_len())
    }
}

fn reference() -> GroupRef {
    GroupRef {
        domain: DOMAIN.into(),
        id: GROUP.id(0).into(),
    }
}
