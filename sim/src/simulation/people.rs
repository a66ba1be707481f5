//! Devices with keys and certificates, and the authority that vouches for them and revokes them.

use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use chancery_proto::{
    auth::v1::{DeviceStatus, SignedStatus, StatusChange, device_status, signed_status},
    certificate::{Anchors, DEVICE_EKU, STATUS_EKU, device_uri, user_uri},
    common::v1::DeviceRef,
    signed,
};
use client_cli::{
    core::{
        identity::{Identity, Trust},
        records::Person,
    },
    member::Member,
    profile::Profile,
    store::Store,
    transport::Transport,
};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SigningKey as _,
};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    clock::{Clock, Skewed},
    network::Network,
    service::{DOMAIN, Who},
};

/// How long a command of a device goes on without an answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// A root and the intermediate that signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    intermediate: Vec<u8>,
    trust: Trust,
    anchors: Anchors,
    clock: Clock,
}

fn authority(path: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("level {path}"));
    params
}

fn usages(usages: &[&[u64]]) -> Vec<ExtendedKeyUsagePurpose> {
    let other = |usage: &&[u64]| ExtendedKeyUsagePurpose::Other(usage.to_vec());
    usages.iter().map(other).collect()
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new(clock: Clock) -> anyhow::Result<Self> {
        let root_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let root = authority(1).self_signed(&root_key)?.der().to_vec();
        let root_issuer = Issuer::new(authority(1), root_key);
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = authority(0);
        params.extended_key_usages = usages(&[DEVICE_EKU, STATUS_EKU]);
        let intermediate = params.signed_by(&key, &root_issuer)?.der().to_vec();
        let anchors = Anchors::pinned(&root, std::slice::from_ref(&intermediate), clock.seconds())?;
        let mut trust = Trust::default();
        trust.pin(DOMAIN, anchors.clone());
        Ok(Self {
            issuer: Issuer::new(params, key),
            intermediate,
            trust,
            anchors,
            clock,
        })
    }

    /// What its certificates verify with.
    pub fn anchors(&self) -> Anchors {
        self.anchors.clone()
    }

    /// A device of a user.
    ///
    /// # Errors
    /// No key can be made.
    pub fn device(&self, user: Uuid, device: Uuid) -> anyhow::Result<Identity> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let uri = |text: String| anyhow::Ok(SanType::URI(text.try_into()?));
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            uri(user_uri(DOMAIN, user))?,
            uri(device_uri(DOMAIN, device))?,
        ];
        params.extended_key_usages = usages(&[DEVICE_EKU]);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            person: Person {
                domain: DOMAIN.into(),
                user: *user.as_bytes(),
                device: *device.as_bytes(),
            },
            certificate: certificate.der().to_vec(),
            pkcs8: Zeroizing::new(key.serialize_der()),
            p256: None,
        })
    }

    /// The signed statement that a device was revoked.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn revocation(&self, device: Uuid) -> anyhow::Result<Vec<u8>> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.extended_key_usages = usages(&[STATUS_EKU]);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let status = DeviceStatus {
            seq: 1,
            subject: Some(device_status::Subject::Device(DeviceRef {
                domain: DOMAIN.into(),
                id: device.as_bytes().to_vec().into(),
            })),
            change: StatusChange::Revoked.into(),
            at_micros: self.clock.micros(),
            ..DeviceStatus::default()
        }
        .encode_to_vec();
        let signature = key.sign(&signed::to_be_signed(signed::STATUS, &status))?;
        let item = SignedStatus {
            content: Some(signed_status::Content::Status(status.into())),
            signature: signature.into(),
            chain: vec![
                certificate.der().to_vec().into(),
                self.intermediate.clone().into(),
            ],
        };
        Ok(item.encode_to_vec())
    }
}

/// A device of the simulation: what outlives a crash.
pub struct Device {
    /// Who it is.
    pub who: Who,
    /// Its wrong or right clock.
    pub skewed: Arc<Skewed>,
    identity: Identity,
    trust: Trust,
    network: Network,
}

impl Device {
    /// Enrolled, with an empty store.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new(
        authority: &Authority,
        network: &Network,
        random: &Arc<Mutex<fastrand::Rng>>,
        n: u128,
    ) -> anyhow::Result<Self> {
        // Every third device is a second one of the user before it.
        let user = Uuid::from_u128(1_000 + n - u128::from(n % 3 == 2));
        let who = Who {
            user,
            device: Uuid::from_u128(2_000 + n),
        };
        network.know(who);
        Ok(Self {
            identity: authority.device(who.user, who.device)?,
            trust: authority.trust.clone(),
            skewed: Arc::new(Skewed::new(authority.clock.clone(), random.clone())),
            network: network.clone(),
            who,
        })
    }

    /// A process of this device over a store.
    ///
    /// # Errors
    /// No channel can be made.
    pub fn open(&self, store: Store) -> anyhow::Result<Member> {
        let channel = self.network.channel().context("no channel")?;
        let transport = Transport::over(channel.clone(), channel, PATIENCE, self.skewed.clone());
        let mut profile = Profile::new("http://sim.invalid", "http://sim.invalid");
        profile.domain = DOMAIN.into();
        profile.delivery_domain = DOMAIN.into();
        let member = Member::over(
            profile,
            store,
            self.identity.clone(),
            transport,
            self.skewed.clone(),
        );
        Ok(member.with_trust(self.trust.clone()))
    }
}
