//! Becoming a device, and the KeyPackages that others add it by.

use std::{path::Path, time::Duration};

use chancery_proto::{
    auth::v1::{Credential, EnrollRequest, EnrollResponse, enroll_request},
    certificate::Anchors,
    common::v1::Reason,
    delivery::v1::{
        GetKeyPackageStockRequest, GetServiceInfoRequest, PublishKeyPackagesRequest, Stock,
    },
    signed,
};
use openmls::prelude::{Ciphersuite, KeyPackage, Lifetime, MlsMessageOut};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    Auth, Delivery, IDENTITY, META, Member, P256_KEY, fetch_intermediates, open_store, stock,
};
use crate::{
    core::{
        CoreError, group,
        identity::{self, Identity, OtherKey},
        mls,
        records::Person,
    },
    failure::Failure,
    fault,
    profile::{PinnedRoot, Profile},
    store::{Store, StoreError},
    surroundings::{Surroundings as _, System},
    transport::Transport,
};

const ENROLMENT: &[u8] = b"enrolment";
/// SHA-256 of the invitation that made this device.
const ENROLLED_BY: &[u8] = b"enrolled_by";
/// Longest lifetime that this device gives a KeyPackage: below the servers' usual limit of 90 days.
const KEY_PACKAGE_SECONDS: i64 = 80 * 86_400;
const PUBLISH_PART: u32 = 100;

/// What `enroll` is told.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The invitation's code.
    pub invitation: String,
    /// The domain that the root is pinned for; the Authentication Service must speak for it when it is given.
    pub domain: Option<String>,
    /// Pins the own domain's root.
    pub root: std::path::PathBuf,
    /// Roots of other domains.
    pub other_roots: Vec<PinnedRoot>,
    /// Shown to the user.
    pub device_name: String,
    /// The Delivery Service's domain, as it says itself when absent.
    pub delivery_domain: Option<String>,
    /// How many one-time KeyPackages to publish.
    pub key_packages: u32,
}

/// RFC 8446 section 4.2.3: the device key's scheme, and that of suite 2.
const ED25519: u32 = 0x0807;
const P256: u32 = 0x0403;

/// A key, its signing request, and the proof that it knows the invitation.
#[derive(Clone, Serialize, Deserialize)]
struct BegunKey {
    scheme: u32,
    pkcs8: Zeroizing<Vec<u8>>,
    csr: Vec<u8>,
    proof: Vec<u8>,
}

/// Kept before anything is sent: a crash goes on with the same keys and the same proofs.
#[derive(Clone, Serialize, Deserialize)]
struct Begun {
    invitation_hash: [u8; 32],
    keys: Vec<BegunKey>,
    proof_time: i64,
}

fn damaged(what: impl std::fmt::Display) -> Failure {
    Failure::Profile(what.to_string())
}

impl BegunKey {
    fn new(scheme: u32) -> Result<Self, Failure> {
        let algorithm = match scheme {
            P256 => &PKCS_ECDSA_P256_SHA256,
            _ => &PKCS_ED25519,
        };
        let key = KeyPair::generate_for(algorithm).map_err(damaged)?;
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .map_err(damaged)?;
        Ok(Self {
            scheme,
            pkcs8: Zeroizing::new(key.serialize_der()),
            csr: csr.der().to_vec(),
            proof: Vec::new(),
        })
    }

    fn public(&self) -> Result<Vec<u8>, Failure> {
        if self.scheme == P256 {
            return Ok(identity::p256(&self.pkcs8)?.public_key().as_ref().to_vec());
        }
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.pkcs8).map_err(damaged)?;
        Ok(pair.public_key().as_ref().to_vec())
    }

    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        if self.scheme == P256 {
            let pair = identity::p256(&self.pkcs8)?;
            let signature = pair.sign(&SystemRandom::new(), bytes);
            return Ok(signature.map_err(damaged)?.as_ref().to_vec());
        }
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.pkcs8).map_err(damaged)?;
        Ok(pair.sign(bytes).as_ref().to_vec())
    }
}

impl Begun {
    /// With a key for each scheme that the service issues certificates for.
    fn new(domain: &str, invitation: &str, schemes: &[u32]) -> Result<Self, Failure> {
        let mut keys = vec![BegunKey::new(ED25519)?];
        if schemes.contains(&P256) {
            keys.push(BegunKey::new(P256)?);
        }
        let mut begun = Self {
            invitation_hash: Sha256::digest(invitation).into(),
            keys,
            proof_time: 0,
        };
        begun.prove(domain, invitation)?;
        Ok(begun)
    }

    /// Proofs of now, by the same keys.
    fn prove(&mut self, domain: &str, invitation: &str) -> Result<(), Failure> {
        self.proof_time = System.now();
        for key in &mut self.keys {
            let content = signed::enroll(domain, invitation, &key.csr, self.proof_time);
            key.proof = key.sign(&signed::to_be_signed(signed::ENROLL, &content))?;
        }
        Ok(())
    }

    fn request(&self, invitation: &str, device_name: &str) -> EnrollRequest {
        let credentials = self.keys.iter().map(|key| Credential {
            scheme: key.scheme,
            csr: key.csr.clone().into(),
            proof: key.proof.clone().into(),
            proof_time: self.proof_time,
        });
        EnrollRequest {
            by: Some(enroll_request::By::Invitation(invitation.to_owned())),
            credentials: credentials.collect(),
            device_name: device_name.to_owned(),
        }
    }
}

/// Makes the key, enrolls, writes the profile and publishes KeyPackages. After a crash the same call goes on where it stopped.
///
/// # Errors
/// The services' refusals, a certificate that the pinned root does not vouch for, or the profile.
pub async fn enroll(
    folder: &Path,
    mut profile: Profile,
    enrolment: &Enrolment,
    deadline: Duration,
) -> Result<Member, Failure> {
    crate::profile::prepare_folder(folder)?;
    let mut store = super::blocking(|| open_store(folder, deadline))?;
    let done: Option<Identity> = store.step(|step| step.get(META, IDENTITY))?;
    if let Some(identity) = done {
        let by: Option<[u8; 32]> = store.step(|step| step.get(META, ENROLLED_BY))?;
        same_enrolment(&identity, by, &Profile::read(folder)?, enrolment)?;
    } else {
        let transport = Transport::new(&profile, deadline, std::sync::Arc::new(System))?;
        not_under_way(&mut store, enrolment)?;
        let schemes = learn_service(&mut profile, enrolment, &transport).await?;
        let identity = certified(&mut store, &profile, enrolment, &transport, &schemes).await?;
        profile.write(folder)?;
        store.step(|step| -> Result<(), StoreError> {
            step.put(META, ENROLLED_BY, &enrolment.invitation_hash())?;
            step.put(META, IDENTITY, &identity)?;
            if let Some(key) = &identity.p256 {
                step.put(META, P256_KEY, key)?;
            }
            step.delete(META, ENROLMENT)
        })?;
    }
    drop(store);
    fault::point("enroll-after-answer");
    let member = Member::open(folder, Profile::read(folder)?, deadline).await?;
    // Whoever enrolls hears now of a root that cannot be used.
    if let Some(failed) = member.take_unpinned().pop() {
        return Err(failed.failure);
    }
    member
        .fill_key_packages(group::SUITES[0], enrolment.key_packages)
        .await?;
    // Asked for again by whoever needs it.
    let _limit = member.message_bytes().await;
    Ok(member)
}

fn already(message: String) -> Failure {
    Failure::NotAllowed {
        reason: "ALREADY_ENROLLED",
        message,
    }
}

/// A profile is one device for ever: only the enrolment that made it may be repeated.
fn same_enrolment(
    identity: &Identity,
    by: Option<[u8; 32]>,
    profile: &Profile,
    enrolment: &Enrolment,
) -> Result<(), Failure> {
    let refuse = |what: &str| {
        Err(already(format!(
            "this profile is {} of {}, which was enrolled with another {what}; nothing was changed: name another folder with --profile",
            identity.person.device_uri(),
            identity.person.user_uri(),
        )))
    };
    let other = |given: &Option<String>, own: &str| given.as_ref().is_some_and(|g| g != own);
    let pinned = |root: &&PinnedRoot| root.domain == profile.domain;
    if by != Some(enrolment.invitation_hash()) {
        return refuse("invitation");
    }
    if other(&enrolment.domain, &profile.domain)
        || other(&enrolment.delivery_domain, &profile.delivery_domain)
    {
        return refuse("domain");
    }
    let given = PinnedRoot::from_file(&profile.domain, &profile.auth_url, &enrolment.root)?;
    match profile.roots.iter().find(pinned) {
        Some(root) if root.root == given.root => Ok(()),
        _ => refuse("root certificate"),
    }
}

/// An enrolment whose answer was lost may have made a device: its keys are not thrown away for another invitation.
fn not_under_way(store: &mut Store, enrolment: &Enrolment) -> Result<(), Failure> {
    let begun: Option<Begun> = store.step(|step| step.get(META, ENROLMENT))?;
    match begun {
        Some(begun) if begun.invitation_hash != enrolment.invitation_hash() => Err(already(
            "an enrolment with another invitation is under way here, and its outcome is not known: repeat it with that invitation, or name another \
             folder with --profile"
                .into(),
        )),
        _ => Ok(()),
    }
}

impl Enrolment {
    fn invitation_hash(&self) -> [u8; 32] {
        Sha256::digest(self.invitation.trim()).into()
    }
}

/// Fills in the profile; the signature schemes that certificates are issued for.
async fn learn_service(
    profile: &mut Profile,
    enrolment: &Enrolment,
    transport: &Transport,
) -> Result<Vec<u32>, Failure> {
    let info = transport
        .repeat(async || {
            let mut client = Auth::new(transport.auth.clone());
            let request = chancery_proto::auth::v1::GetServiceInfoRequest {};
            Ok(client.get_service_info(request).await?.into_inner())
        })
        .await?
        .value;
    if enrolment.domain.as_ref().is_some_and(|d| *d != info.domain) {
        return Err(Failure::Answer(format!(
            "the Authentication Service speaks for {:?}",
            info.domain
        )));
    }
    let schemes = info.credential_schemes;
    profile.domain = info.domain;
    profile.pin(PinnedRoot::from_file(
        &profile.domain,
        &profile.auth_url,
        &enrolment.root,
    )?);
    for root in &enrolment.other_roots {
        profile.pin(root.clone());
    }
    profile.delivery_domain = match &enrolment.delivery_domain {
        Some(domain) => domain.clone(),
        None => {
            let info = transport.repeat(async || {
                let mut client = Delivery::new(transport.delivery.clone());
                let request = GetServiceInfoRequest {};
                Ok(client.get_service_info(request).await?.into_inner())
            });
            info.await?.value.domain
        }
    };
    Ok(schemes)
}

async fn certified(
    store: &mut Store,
    profile: &Profile,
    enrolment: &Enrolment,
    transport: &Transport,
    schemes: &[u32],
) -> Result<Identity, Failure> {
    let invitation = enrolment.invitation.trim();
    let begun: Option<Begun> = store.step(|step| step.get(META, ENROLMENT))?;
    let mut begun = match begun {
        Some(begun) => begun,
        None => Begun::new(&profile.domain, invitation, schemes)?,
    };
    store.step(|step| step.put(META, ENROLMENT, &begun))?;
    fault::point("enroll-after-key");
    let send = async |begun: &Begun| -> Result<EnrollResponse, Failure> {
        let request = begun.request(invitation, &enrolment.device_name);
        let answer = transport
            .repeat(async || {
                let mut client = Auth::new(transport.auth.clone());
                Ok(client.enroll(request.clone()).await?.into_inner())
            })
            .await;
        Ok(answer.map_err(Failure::kept)?.value)
    };
    let answer = match send(&begun).await {
        // One that never arrived is too old by now; one that had arrived would have been answered.
        Err(failure) if failure.reason() == Some(Reason::ProofInvalid) => {
            begun.prove(&profile.domain, invitation)?;
            store.step(|step| step.put(META, ENROLMENT, &begun))?;
            send(&begun).await
        }
        other => other,
    };
    if matches!(answer, Err(Failure::Refused(_))) {
        // No device came of it: the keys are for nobody.
        store.step(|step| step.delete(META, ENROLMENT))?;
    }
    verified(profile, transport, &begun, &answer?).await
}

/// The certificate must be for the own key, and the pinned root must vouch for it.
async fn verified(
    profile: &Profile,
    transport: &Transport,
    begun: &Begun,
    answer: &EnrollResponse,
) -> Result<Identity, Failure> {
    let bad = |why: &str| Failure::Answer(format!("the certificate: {why}"));
    if answer.certificates.len() != begun.keys.len() {
        return Err(bad("not one for each key"));
    }
    let root = profile
        .roots
        .iter()
        .find(|root| root.domain == profile.domain)
        .ok_or_else(|| bad("no pinned root"))?;
    let intermediates = fetch_intermediates(transport, root, profile.tls_ca.as_deref()).await?;
    let anchors = Anchors::pinned(&root.der()?, &intermediates, System.now())
        .map_err(|error| bad(&error.to_string()))?;
    let mut identity: Option<Identity> = None;
    for (key, certificate) in begun.keys.iter().zip(&answer.certificates) {
        let seen = anchors
            .verify_device(certificate, System.now())
            .map_err(|error| bad(&error.to_string()))?;
        let person = Person {
            domain: seen.domain,
            user: *seen.user.as_bytes(),
            device: *seen.device.as_bytes(),
        };
        if person.domain != profile.domain || seen.public_key != key.public()? {
            return Err(bad("another key or domain"));
        }
        match &mut identity {
            None => {
                identity = Some(Identity {
                    person,
                    certificate: certificate.to_vec(),
                    pkcs8: key.pkcs8.clone(),
                    p256: None,
                });
            }
            Some(first) if first.person == person => {
                first.p256 = Some(OtherKey {
                    certificate: certificate.to_vec(),
                    pkcs8: key.pkcs8.clone(),
                });
            }
            Some(_) => return Err(bad("of two devices")),
        }
    }
    identity.ok_or_else(|| bad("none"))
}

impl Member {
    /// What the server has in stock of this device.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn key_package_stock(&self) -> Result<Vec<Stock>, Failure> {
        let answer = self
            .delivery(GetKeyPackageStockRequest {}, async |mut client, request| {
                Ok(client.get_key_package_stock(request).await?.into_inner())
            })
            .await?;
        Ok(answer.value.stock)
    }

    /// Publishes as many one-time KeyPackages as are missing, and a last resort when there is none or it was given out.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn fill_key_packages(
        &self,
        suite: Ciphersuite,
        wanted: u32,
    ) -> Result<Vec<Stock>, Failure> {
        let stock = self.key_package_stock().await?;
        let code = u32::from(u16::from(suite));
        let own = stock.iter().find(|s| s.suite == code);
        let missing = wanted.saturating_sub(own.map_or(0, |s| s.one_time));
        let last_resort = stock::needs_last_resort(own);
        self.publish_key_packages(suite, missing, last_resort).await
    }

    /// Publishes new KeyPackages. Their private parts are kept before they are sent.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn publish_key_packages(
        &self,
        suite: Ciphersuite,
        count: u32,
        last_resort: bool,
    ) -> Result<Vec<Stock>, Failure> {
        let (mut left, mut last_resort) = (count, last_resort);
        while left > 0 || last_resort {
            let part = left.min(PUBLISH_PART);
            let key_packages = self.make_key_packages(suite, part, last_resort)?;
            let request = PublishKeyPackagesRequest {
                key_packages: key_packages.into_iter().map(Into::into).collect(),
                ..PublishKeyPackagesRequest::default()
            };
            self.delivery(request, async |mut client, request| {
                client.publish_key_packages(request).await
            })
            .await?;
            left -= part;
            last_resort = false;
        }
        self.key_package_stock().await
    }

    pub(super) fn make_key_packages(
        &self,
        suite: Ciphersuite,
        count: u32,
        last_resort: bool,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let (_, certificate_ends) =
            chancery_proto::certificate::validity(&self.identity.certificate).map_err(damaged)?;
        self.step(|step, context| {
            let ends = certificate_ends.min(context.now + KEY_PACKAGE_SECONDS);
            let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
            let lifetime = Lifetime::init(seconds(context.now - 3_600), seconds(ends));
            let key = context.identity.leaf_key(suite)?;
            let kinds = (0..count).map(|_| false).chain(last_resort.then_some(true));
            kinds
                .map(|last_resort| {
                    let mut builder = KeyPackage::builder()
                        .leaf_node_capabilities(group::capabilities())
                        .key_package_lifetime(lifetime);
                    if last_resort {
                        builder = builder.mark_as_last_resort();
                    }
                    let made = builder
                        .build(suite, step.provider(), &key, key.credential())
                        .map_err(mls)?;
                    MlsMessageOut::from(made.key_package().clone())
                        .to_bytes()
                        .map_err(mls)
                })
                .collect::<Result<_, CoreError>>()
        })
    }
}
