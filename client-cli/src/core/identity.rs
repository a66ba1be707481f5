//! The device's key and certificate, the pinned roots, and who a leaf is.

use std::collections::BTreeMap;

use chancery_proto::{
    certificate::{self, Anchors},
    commit_info::Member,
    wire::{Write as _, exact},
};
use openmls::prelude::{Credential, CredentialType, CredentialWithKey};
use openmls_traits::{
    signatures::{Signer, SignerError},
    types::SignatureScheme,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
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
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity")
            .field(&self.person.device_uri())
            .finish()
    }
}

impl Identity {
    /// # Errors
    /// The stored key is none.
    fn pair(&self) -> Result<Ed25519KeyPair, CoreError> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.pkcs8)
            .map_err(|_| CoreError::Malformed("the device key is no Ed25519 key".into()))
    }

    /// The raw public key.
    ///
    /// # Errors
    /// The stored key is none.
    pub fn public_key(&self) -> Result<Vec<u8>, CoreError> {
        Ok(self.pair()?.public_key().as_ref().to_vec())
    }

    /// What goes into the leaf.
    ///
    /// # Errors
    /// The stored key is none.
    pub fn credential(&self) -> Result<CredentialWithKey, CoreError> {
        let mut content = Vec::new();
        content.put_vector(&self.certificate);
        Ok(CredentialWithKey {
            credential: Credential::new(CredentialType::X509, content),
            signature_key: self.public_key()?.into(),
        })
    }
}

impl Signer for Identity {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        let pair = self.pair().map_err(|_| SignerError::SigningError)?;
        Ok(pair.sign(payload).as_ref().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
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
    Ok(Person {
        domain: device.domain,
        user: *device.user.as_bytes(),
        device: *device.device.as_bytes(),
    })
}

/// Roots by domain. A device of another domain than its root's is not trusted.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    anchors: BTreeMap<String, Anchors>,
}

impl Trust {
    /// Pins a root for a domain.
    pub fn pin(&mut self, domain: &str, anchors: Anchors) {
        self.anchors.insert(domain.to_owned(), anchors);
    }

    /// Is the certificate good at that time (Unix seconds)?
    ///
    /// # Errors
    /// [`CoreError::Distrusted`].
    pub fn verify(&self, credential: &Credential, at: i64) -> Result<Person, CoreError> {
        let der = certificate_of(credential)?;
        let read = certificate::read_device(&der)
            .map_err(|error| CoreError::Distrusted(error.to_string()))?;
        let anchors = self.anchors.get(&read.domain).ok_or_else(|| {
            CoreError::Distrusted(format!("no root is pinned for {}", read.domain))
        })?;
        anchors
            .verify_device(&der, at)
            .map_err(|error| CoreError::Distrusted(error.to_string()))?;
        Ok(Person {
            domain: read.domain,
            user: *read.user.as_bytes(),
            device: *read.device.as_bytes(),
        })
    }
}

/// Sorted and unique, as CommitInfo wants it.
pub fn members(mut persons: Vec<Person>) -> Vec<Member> {
    persons.sort();
    persons.dedup();
    persons.into_iter().map(Into::into).collect()
}
