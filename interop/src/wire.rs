//! A device on the wire contract alone: what any client, in any language, has to do. It knows no MLS library.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    auth::v1::{
        Credential, EnrollRequest, GetServiceInfoRequest, IssueTokenRequest,
        auth_service_client::AuthServiceClient, enroll_request,
    },
    certificate::{self, device_uri},
    common::v1::{DeviceRef, GroupRef},
    delivery::v1::{
        AckWelcomesRequest, ClaimKeyPackagesRequest, ClaimOutcome, CreateGroupRequest, Entry,
        FetchPayloadRequest, FetchTreeRequest, GetGroupInfoRequest, GetGroupInfoResponse,
        LeaveGroupRequest, ListWelcomesRequest, PublishKeyPackagesRequest, ReadLogRequest,
        RequiredCapabilities, SendMessageRequest, SendMessageResponse, SubmitCommitRequest,
        SubmitCommitResponse, TreeUpdate, Welcome, WelcomeRef,
        delivery_service_client::DeliveryServiceClient, entry::Body,
    },
    policy::POLICY_EXTENSION,
    signed,
    token::{ASSERTION_TYPE, AssertionClaims, sign},
    tree::Tree,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SigningKey as _};
use tonic::{
    Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use uuid::Uuid;

/// Signature schemes in the order of a device's keys, how their keys are made, and what stands before the secret in PKCS#8.
const SCHEMES: [(u32, &rcgen::SignatureAlgorithm, &[u8]); 2] = [
    (0x0807, &PKCS_ED25519, &[0x04, 0x22, 0x04, 0x20]),
    (
        0x0403,
        &PKCS_ECDSA_P256_SHA256,
        &[0x02, 0x01, 0x01, 0x04, 0x20],
    ),
];

/// How long a leave request stands.
const LEAVE_SECONDS: i64 = 86_400;

/// Who somebody is: user and device of one domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Person {
    /// The user.
    pub user: Uuid,
    /// The device.
    pub device: Uuid,
}

impl Person {
    /// Who a leaf certificate names.
    ///
    /// # Errors
    /// Not of the profile, or of another domain.
    pub fn of(der: &[u8], domain: &str) -> anyhow::Result<Self> {
        let seen = certificate::read_device(der)?;
        ensure!(seen.domain == domain, "a certificate of {}", seen.domain);
        Ok(Self {
            user: seen.user,
            device: seen.device,
        })
    }

    /// `mimi://<domain>/d/<uuid>`.
    pub fn uri(&self, domain: &str) -> String {
        device_uri(domain, self.device)
    }
}

/// A key of a device, with its certificate.
pub struct LeafKey {
    /// DER.
    pub certificate: Vec<u8>,
    /// Raw.
    pub public_key: Vec<u8>,
    /// The 32 secret bytes: an Ed25519 seed (RFC 8410), or a P-256 scalar (RFC 5915).
    pub secret: Vec<u8>,
    pair: KeyPair,
}

impl LeafKey {
    /// Signs outside MLS.
    ///
    /// # Errors
    /// No randomness.
    pub fn sign(&self, label: &str, content: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(self.pair.sign(&signed::to_be_signed(label, content))?)
    }

    /// `marker` stands before the secret in the key's PKCS#8.
    fn new(certificate: &[u8], pair: &KeyPair, marker: &[u8]) -> anyhow::Result<Self> {
        let pkcs8 = pair.serialize_der();
        let found = pkcs8
            .windows(marker.len())
            .position(|window| window == marker);
        let at = found.context("a PKCS#8 of another form")? + marker.len();
        Ok(Self {
            certificate: certificate.to_vec(),
            public_key: pair.public_key_raw().to_vec(),
            secret: pkcs8.get(at..at + 32).context("a short key")?.to_vec(),
            pair: KeyPair::try_from(pkcs8.as_slice())?,
        })
    }
}

/// An enrolled device with its connections.
pub struct Device {
    /// Whose Authentication Service vouches for it.
    pub domain: String,
    /// Who it is.
    pub person: Person,
    /// The Ed25519 key, which it is known by, and the P-256 one where there is one.
    keys: Vec<LeafKey>,
    auth: AuthServiceClient<Channel>,
    delivery: DeliveryServiceClient<Channel>,
    token: String,
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

/// Where services are.
#[derive(Debug, Clone)]
pub struct Place {
    /// Of the Authentication Service.
    pub auth_url: String,
    /// Of the Delivery Service.
    pub delivery_url: String,
    /// PEM of a root that TLS is verified with, besides none.
    pub ca: Option<Vec<u8>>,
}

impl Place {
    async fn connect(&self, url: &str) -> anyhow::Result<Channel> {
        let mut endpoint = Endpoint::from_shared(url.to_owned())?;
        if let Some(ca) = &self.ca {
            let root = Certificate::from_pem(ca);
            endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(root))?;
        }
        let connected = endpoint.connect().await;
        connected.with_context(|| format!("cannot connect to {url}"))
    }
}

/// A group of a domain.
pub fn group_ref(domain: &str, id: &[u8]) -> Option<GroupRef> {
    Some(GroupRef {
        domain: domain.to_owned(),
        id: id.to_vec().into(),
    })
}

/// The whole tree, as it is sent.
///
/// # Errors
/// The bytes are no ratchet tree.
pub fn full_tree(ratchet_tree: &[u8]) -> anyhow::Result<TreeUpdate> {
    let tree = Tree::from_ratchet_tree(ratchet_tree).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(tree.to_update())
}

impl Device {
    /// Makes a key, enrolls with an invitation, gets a token.
    ///
    /// # Errors
    /// A service refuses.
    pub async fn enroll(place: &Place, code: String, handle: &str) -> anyhow::Result<Self> {
        let mut auth = AuthServiceClient::new(place.connect(&place.auth_url).await?);
        let delivery = DeliveryServiceClient::new(place.connect(&place.delivery_url).await?);
        let info = auth.get_service_info(GetServiceInfoRequest {}).await?;
        let info = info.into_inner();
        let domain = info.domain;
        let proof_time = now();
        let mut credentials = Vec::new();
        let mut pairs = Vec::new();
        for (scheme, algorithm, marker) in SCHEMES {
            if !info.credential_schemes.contains(&scheme) {
                continue;
            }
            let key = KeyPair::generate_for(algorithm)?;
            let csr = CertificateParams::default().serialize_request(&key)?;
            let content = signed::enroll(&domain, &code, csr.der(), proof_time);
            let proof = key.sign(&signed::to_be_signed(signed::ENROLL, &content))?;
            credentials.push(Credential {
                scheme,
                csr: csr.der().to_vec().into(),
                proof: proof.into(),
                proof_time,
            });
            pairs.push((key, marker));
        }
        let request = EnrollRequest {
            by: Some(enroll_request::By::Invitation(code)),
            credentials,
            device_name: handle.to_owned(),
        };
        let answer = auth.enroll(request).await?.into_inner();
        let certificates = &answer.certificates;
        ensure!(
            certificates.len() == pairs.len(),
            "{} certificates for {} keys",
            certificates.len(),
            pairs.len()
        );
        let keys: Vec<LeafKey> = pairs
            .iter()
            .zip(certificates)
            .map(|((pair, marker), certificate)| LeafKey::new(certificate, pair, marker))
            .collect::<anyhow::Result<_>>()?;
        let certificate = certificates.first().context("no certificate")?;
        let mut device = Self {
            person: Person::of(certificate, &domain)?,
            domain,
            keys,
            auth,
            delivery: delivery.max_encoding_message_size(64 << 20),
            token: String::new(),
        };
        device.refresh_token().await?;
        Ok(device)
    }

    /// The key of its leaves in groups of a suite.
    ///
    /// # Errors
    /// The Authentication Service issues no certificates for its signatures.
    pub fn leaf_key(&self, suite: u16) -> anyhow::Result<&LeafKey> {
        let found = self.keys.get(usize::from(suite == 2));
        found.with_context(|| format!("no certificate for suite {suite}"))
    }

    async fn refresh_token(&mut self) -> anyhow::Result<()> {
        let name = self.person.uri(&self.domain);
        let claims = AssertionClaims {
            iss: name.clone(),
            sub: name,
            aud: format!("as:{}", self.domain),
            iat: now(),
            exp: now() + 60,
            jti: Uuid::new_v4().to_string(),
        };
        let request = IssueTokenRequest {
            client_assertion: sign(
                ASSERTION_TYPE,
                None,
                &claims,
                &self.keys[0].pair.serialize_der(),
            )?,
            audience: format!("ds:{}", self.domain),
        };
        self.token = self
            .auth
            .issue_token(request)
            .await?
            .into_inner()
            .access_token;
        Ok(())
    }

    /// Its connection to the Delivery Service, for calls that this client does not make by itself.
    pub fn delivery(&self) -> DeliveryServiceClient<Channel> {
        self.delivery.clone()
    }

    /// A request in this device's name.
    ///
    /// # Errors
    /// The token is no header value.
    pub fn by<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        let value = format!("Bearer {}", self.token)
            .parse()
            .map_err(|_| Status::unauthenticated("token"))?;
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }

    /// Publishes MLSMessage(KeyPackage)s.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn publish(&mut self, key_packages: Vec<Vec<u8>>) -> Result<(), Status> {
        let request = self.by(PublishKeyPackagesRequest {
            key_packages: key_packages.into_iter().map(Into::into).collect(),
            ..PublishKeyPackagesRequest::default()
        })?;
        self.delivery.publish_key_packages(request).await?;
        Ok(())
    }

    /// One KeyPackage of each device.
    ///
    /// # Errors
    /// The service's refusal, or a device without one.
    pub async fn claim(
        &mut self,
        group: &[u8],
        suite: u16,
        devices: &[Person],
    ) -> Result<Vec<Vec<u8>>, Status> {
        self.claim_as(Uuid::new_v4(), group, suite, devices).await
    }

    /// The same under this `claim_id`: a repeat gets the same answer.
    ///
    /// # Errors
    /// The service's refusal, or a device without one.
    pub async fn claim_as(
        &mut self,
        claim_id: Uuid,
        group: &[u8],
        suite: u16,
        devices: &[Person],
    ) -> Result<Vec<Vec<u8>>, Status> {
        let request = self.by(ClaimKeyPackagesRequest {
            claim_id: claim_id.as_bytes().to_vec().into(),
            devices: devices
                .iter()
                .map(|person| DeviceRef {
                    domain: self.domain.clone(),
                    id: person.device.as_bytes().to_vec().into(),
                })
                .collect(),
            suites: vec![suite.into()],
            required: Some(RequiredCapabilities {
                extensions: vec![POLICY_EXTENSION.into()],
                proposals: vec![],
                credentials: vec![2],
            }),
            for_group: group_ref(&self.domain, group),
        })?;
        let mut parts = self
            .delivery
            .claim_key_packages(request)
            .await?
            .into_inner();
        let mut packages = Vec::new();
        while let Some(part) = parts.message().await? {
            for claim in part.claims {
                if claim.outcome() != ClaimOutcome::KeyPackage {
                    let why = claim.outcome().as_str_name();
                    return Err(Status::not_found(why));
                }
                packages.push(claim.key_package.to_vec());
            }
        }
        Ok(packages)
    }

    /// Creates a group.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn create_group(
        &mut self,
        group: &[u8],
        suite: u16,
        group_info: Vec<u8>,
        tree: TreeUpdate,
    ) -> Result<(), Status> {
        let request = self.by(CreateGroupRequest {
            group: group_ref(&self.domain, group),
            suite: suite.into(),
            group_info: group_info.into(),
            tree: Some(tree),
            ..CreateGroupRequest::default()
        })?;
        self.delivery.create_group(request).await?;
        Ok(())
    }

    /// Submits a Commit.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn submit(
        &mut self,
        request: SubmitCommitRequest,
    ) -> Result<SubmitCommitResponse, Status> {
        let request = self.by(request)?;
        Ok(self.delivery.submit_commit(request).await?.into_inner())
    }

    /// Sends an application message or a proposal.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn send(
        &mut self,
        request: SendMessageRequest,
    ) -> Result<SendMessageResponse, Status> {
        let request = self.by(request)?;
        Ok(self.delivery.send_message(request).await?.into_inner())
    }

    /// Asks the others to remove this device from a membership that began at `joined_seq`, with the key of its leaf; the request's seq.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn leave(
        &mut self,
        group: &[u8],
        suite: u16,
        joined_seq: u64,
    ) -> Result<u64, Status> {
        let expires_at = now() + LEAVE_SECONDS;
        let content = signed::leave(
            (&self.domain, group),
            (&self.domain, self.person.device.as_bytes()),
            joined_seq,
            expires_at,
        );
        let key = self.leaf_key(suite);
        let signature = key.and_then(|key| key.sign(signed::LEAVE, &content));
        let signature = signature.map_err(|error| Status::internal(error.to_string()))?;
        let request = self.by(LeaveGroupRequest {
            group: group_ref(&self.domain, group),
            message_id: Uuid::new_v4().as_bytes().to_vec().into(),
            joined_seq,
            expires_at,
            signature: signature.into(),
        })?;
        Ok(self.delivery.leave_group(request).await?.into_inner().seq)
    }

    /// Entries after a seq, with their payloads.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn read(
        &mut self,
        group: &[u8],
        after: u64,
    ) -> Result<Vec<(Entry, Vec<u8>)>, Status> {
        let request = self.by(ReadLogRequest {
            group: group_ref(&self.domain, group),
            after_seq: after,
            ..ReadLogRequest::default()
        })?;
        let mut parts = self.delivery.read_log(request).await?.into_inner();
        let mut entries = Vec::new();
        while let Some(part) = parts.message().await? {
            entries.extend(part.entries.unwrap_or_default().entries);
        }
        let mut read = Vec::with_capacity(entries.len());
        for entry in entries {
            let payload = match &entry.body {
                Some(Body::Payload(bytes)) => bytes.to_vec(),
                Some(Body::PayloadRef(_)) => self.payload(group, entry.seq).await?,
                None => Vec::new(),
            };
            read.push((entry, payload));
        }
        Ok(read)
    }

    async fn payload(&mut self, group: &[u8], seq: u64) -> Result<Vec<u8>, Status> {
        let request = self.by(FetchPayloadRequest {
            group: group_ref(&self.domain, group),
            seq,
        })?;
        let mut parts = self.delivery.fetch_payload(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await? {
            bytes.extend_from_slice(&part.chunk);
        }
        Ok(bytes)
    }

    /// The ratchet tree of an epoch, RFC 9420 section 12.4.3.3.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn tree(&mut self, group: &[u8], epoch_seq: u64) -> Result<Vec<u8>, Status> {
        let request = self.by(FetchTreeRequest {
            group: group_ref(&self.domain, group),
            epoch_seq,
            current: false,
        })?;
        let mut parts = self.delivery.fetch_tree(request).await?.into_inner();
        let bad = |error| Status::data_loss(format!("{error:?}"));
        let mut tree: Option<Tree> = None;
        while let Some(part) = parts.message().await? {
            let tree = match &mut tree {
                Some(tree) => tree,
                None => tree.insert(Tree::blank(part.tree_width).map_err(bad)?),
            };
            for node in part.nodes {
                tree.set(node.index, node.node.as_deref()).map_err(bad)?;
            }
        }
        tree.map(|tree| tree.to_ratchet_tree())
            .ok_or_else(|| Status::data_loss("no tree"))
    }

    /// The stored GroupInfo.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn group_info(&mut self, group: &[u8]) -> Result<GetGroupInfoResponse, Status> {
        let request = self.by(GetGroupInfoRequest {
            group: group_ref(&self.domain, group),
        })?;
        Ok(self.delivery.get_group_info(request).await?.into_inner())
    }

    /// Unread Welcomes.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn welcomes(&mut self) -> Result<Vec<Welcome>, Status> {
        let request = self.by(ListWelcomesRequest::default())?;
        let mut parts = self.delivery.list_welcomes(request).await?.into_inner();
        let mut welcomes = Vec::new();
        while let Some(part) = parts.message().await? {
            welcomes.extend(part.welcomes);
        }
        Ok(welcomes)
    }

    /// Acknowledges a Welcome.
    ///
    /// # Errors
    /// The service's refusal.
    pub async fn acknowledge(&mut self, welcome: &Welcome) -> Result<(), Status> {
        let request = self.by(AckWelcomesRequest {
            welcomes: vec![WelcomeRef {
                group: welcome.group.clone(),
                seq: welcome.seq,
            }],
        })?;
        self.delivery.ack_welcomes(request).await?;
        Ok(())
    }
}
