//! The device's key and certificate, the pinned roots, and who a leaf is.

use std::collections::BTreeMap;

use chancery_proto::{
    certificate::{self, Anchors, DeviceCertificate},
    commit_info::Member,
    mutants::{self, Mutant},
    policy::Authorities,
    wire::{Write as _, exact},
};
use openmls::prelude::{Ciphersuite, Credential, CredentialType, CredentialWithKey};
use openmls_traits::{
    signatures::{Signer, SignerError},
    types::SignatureScheme,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{CoreError, records::Person};

/// Who this device is.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Domain, user and device.
    pub person: Person,
    /// The leaf certificate, DER.
    pub certificate: Vec<u8>,
    /// The device key, PKCS#8.
    pub pkcs8: Zeroizing<Vec<u8>>,
    /// For suite 2; kept under a name of its own, so that a store without it can be read.
    #[serde(skip)]
    pub p256: Option<OtherKey>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity")
            .field(&self.person.device_uri())
            .finish()
    }
}

/// A further key of the device, for suites whose signatures the device key cannot make.
#[derive(Clone, Serialize, Deserialize)]
pub struct OtherKey {
    /// Its leaf certificate, DER.
    pub certificate: Vec<u8>,
    /// PKCS#8.
    pub pkcs8: Zeroizing<Vec<u8>>,
}

impl Identity {
    /// The raw public key.
    ///
    /// # Errors
    /// The stored key is none.
    pub fn public_key(&self) -> Result<Vec<u8>, CoreError> {
        Ok(ed25519(&self.pkcs8)?.public_key().as_ref().to_vec())
    }

    /// Signs with the device key, outside MLS.
    ///
    /// # Errors
    /// The stored key is none.
    pub fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, CoreError> {
        Ok(ed25519(&self.pkcs8)?.sign(bytes).as_ref().to_vec())
    }

    /// The key of this device's leaves in groups of a suite.
    ///
    /// # Errors
    /// The device has no key for the suite's signatures.
    pub fn leaf_key(&self, suite: Ciphersuite) -> Result<LeafKey, CoreError> {
        let (certificate, pair) = match suite.signature_algorithm() {
            SignatureScheme::ED25519 => (&self.certificate, Pair::Ed25519(ed25519(&self.pkcs8)?)),
            SignatureScheme::ECDSA_SECP256R1_SHA256 => {
                let key = self.p256.as_ref().ok_or_else(|| {
                    CoreError::Malformed("this device was enrolled without a P-256 key".into())
                })?;
                (&key.certificate, Pair::P256(p256(&key.pkcs8)?))
            }
            _ => {
                return Err(CoreError::Malformed(
                    "a suite that this device has not".into(),
                ));
            }
        };
        Ok(LeafKey {
            certificate: certificate.clone(),
            pair,
        })
    }
}

fn ed25519(pkcs8: &[u8]) -> Result<Ed25519KeyPair, CoreError> {
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
        .map_err(|_| CoreError::Malformed("the device key is no Ed25519 key".into()))
}

/// A P-256 key from PKCS#8.
///
/// # Errors
/// It is none.
pub fn p256(pkcs8: &[u8]) -> Result<EcdsaKeyPair, CoreError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &SystemRandom::new())
        .map_err(|_| CoreError::Malformed("not a P-256 key".into()))
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// A key that leaves are signed with, and its certificate.
pub struct LeafKey {
    certificate: Vec<u8>,
    pair: Pair,
}

impl LeafKey {
    /// What goes into the leaf.
    pub fn credential(&self) -> CredentialWithKey {
        let mut content = Vec::new();
        content.put_vector(&self.certificate);
        let public_key = match &self.pair {
            Pair::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
            Pair::P256(pair) => pair.public_key().as_ref().to_vec(),
        };
        CredentialWithKey {
            credential: Credential::new(CredentialType::X509, content),
            signature_key: public_key.into(),
        }
    }
}

impl Signer for LeafKey {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(payload).as_ref().to_vec()),
            Pair::P256(pair) => pair
                .sign(&SystemRandom::new(), payload)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| SignerError::SigningError),
        }
    }

    fn signature_scheme(&self) -> SignatureScheme {
        match self.pair {
            Pair::Ed25519(_) => SignatureScheme::ED25519,
            Pair::P256(_) => SignatureScheme::ECDSA_SECP256R1_SHA256,
        }
    }
}

/// The one certificate of a credential.
///
/// # Errors
/// Not an X.509 credential with exactly one certificate.
pub fn certificate_of(credential: &Credential) -> Result<Vec<u8>, CoreError> {
    if credential.credential_type() != CredentialType::X509 {
        return Err(CoreError::Malformed("not an X.509 credential".into()));
    }
    let content = credential.serialized_content();
    Ok(exact(content, content.len(), |r| Ok(r.vector()?.to_vec()))?)
}

/// Who a leaf is: its certificate's names, and its key is the certificate's. What every member of the epoch sees alike.
///
/// # Errors
/// Not of the certificate profile, or another key.
pub fn person_of(credential: &Credential, signature_key: &[u8]) -> Result<Person, CoreError> {
    let device = certificate::read_device(&certificate_of(credential)?)
        .map_err(|error| CoreError::Malformed(error.to_string()))?;
    if device.public_key != signature_key {
        return Err(CoreError::Malformed(
            "the leaf's key is not its certificate's".into(),
        ));
    }
    Ok(person(device))
}

/// Who a credential names, without a look at the leaf that it is in: for a message, whose leaf every member checked when it came into the tree.
///
/// # Errors
/// Not of the certificate profile.
pub fn person_named(credential: &Credential) -> Result<Person, CoreError> {
    let device = certificate::read_device(&certificate_of(credential)?)
        .map_err(|error| CoreError::Malformed(error.to_string()))?;
    Ok(person(device))
}

fn person(device: DeviceCertificate) -> Person {
    Person {
        domain: device.domain,
        user: *device.user.as_bytes(),
        device: *device.device.as_bytes(),
    }
}

/// Roots by domain. A device of another domain than its root's is not trusted.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    anchors: BTreeMap<String, Anchors>,
    /// Pinned domains whose root cannot be used, and why.
    unusable: BTreeMap<String, String>,
}

impl Trust {
    /// Pins a root for a domain.
    pub fn pin(&mut self, domain: &str, anchors: Anchors) {
        self.anchors.insert(domain.to_owned(), anchors);
    }

    /// Notes that a domain's root is pinned and cannot be used: nobody of that domain is trusted.
    pub fn cannot_pin(&mut self, domain: &str, why: &str) {
        self.unusable.insert(domain.to_owned(), why.to_owned());
    }

    /// That every pinned root can be used.
    ///
    /// # Errors
    /// [`CoreError::Distrusted`], which names one that cannot.
    pub fn is_whole(&self) -> Result<(), CoreError> {
        match self.unusable.keys().next() {
            Some(domain) => self.of(domain).map(drop),
            None => Ok(()),
        }
    }

    fn of(&self, domain: &str) -> Result<&Anchors, CoreError> {
        self.anchors.get(domain).ok_or_else(|| {
            CoreError::Distrusted(match self.unusable.get(domain) {
                Some(why) => format!("the pinned root of {domain} cannot be used: {why}"),
                None => format!("no root is pinned for {domain}"),
            })
        })
    }

    /// The raw key that signed an item of a domain's status feed, at the item's own time (Unix seconds).
    ///
    /// # Errors
    /// [`CoreError::Distrusted`].
    pub fn verify_status(
        &self,
        domain: &str,
        chain: &[impl AsRef<[u8]>],
        at: i64,
    ) -> Result<Vec<u8>, CoreError> {
        self.of(domain)?
            .verify_status(chain, at)
            .map_err(|error| CoreError::Distrusted(error.to_string()))
    }

    /// Is the certificate good at that time (Unix seconds)?
    ///
    /// # Errors
    /// [`CoreError::Distrusted`].
    pub fn verify(&self, credential: &Credential, at: i64) -> Result<Person, CoreError> {
        let der = certificate_of(credential)?;
        let read = certificate::read_device(&der)
            .map_err(|error| CoreError::Distrusted(error.to_string()))?;
        self.of(&read.domain)?
            .verify_device(&der, at)
            .map_err(|error| CoreError::Distrusted(error.to_string()))?;
        Ok(person(read))
    }

    /// Did the pinned root of its domain sign the certificate, at whatever time? One that has ended still names its device.
    ///
    /// # Errors
    /// [`CoreError::Distrusted`].
    pub fn vouched(&self, credential: &Credential, now: i64) -> Result<Person, CoreError> {
        if mutants::is_on(Mutant::EndedCertificateUnverified) {
            return self.verify(credential, now);
        }
        let distrusted =
            |error: certificate::CertificateError| CoreError::Distrusted(error.to_string());
        let der = certificate_of(credential)?;
        let read = certificate::read_device(&der).map_err(distrusted)?;
        let anchors = self.of(&read.domain)?;
        Ok(person(anchors.vouched(&der).map_err(distrusted)?))
    }

    /// The keys that sign the devices of each pinned domain, for the policy of a group.
    pub fn authorities(&self) -> Authorities {
        let keys = |(domain, anchors): (&String, &Anchors)| {
            let mut keys = anchors.signing_keys().to_vec();
            keys.sort();
            keys.dedup();
            (domain.clone(), keys)
        };
        self.anchors
            .iter()
            .map(keys)
            .filter(|(_, keys)| !keys.is_empty())
            .collect()
    }

    /// The intermediates that this device knows of a domain, DER.
    pub fn intermediates(&self, domain: &str) -> Vec<Vec<u8>> {
        let anchors = self.anchors.get(domain);
        anchors.map_or_else(Vec::new, |a| {
            a.intermediates().map(<[u8]>::to_vec).collect()
        })
    }
}

/// Sorted and unique, as CommitInfo wants it.
pub fn members(mut persons: Vec<Person>) -> Vec<Member> {
    persons.sort();
    persons.dedup();
    persons.into_iter().map(Into::into).collect()
}
