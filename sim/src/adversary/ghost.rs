//! A KeyPackage under a certificate that nobody but its own key signed.

use anyhow::anyhow;
use chancery_proto::{certificate::DEVICE_EKU, wire::Write as _};
use client_cli::core::{group, records::Person};
use openmls::prelude::*;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::{Signer, SignerError};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PKCS_ED25519, PublicKeyData as _, SanType,
    SigningKey as _,
};

struct OwnKey(KeyPair);

impl Signer for OwnKey {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.0.sign(payload).map_err(|_| SignerError::SigningError)
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// MLSMessage(KeyPackage) in the name of a person who knows nothing of it.
///
/// # Errors
/// No key or certificate can be made.
pub(super) fn key_package(person: &Person) -> anyhow::Result<Vec<u8>> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    let uri = |text: String| anyhow::Ok(SanType::URI(text.try_into()?));
    params.subject_alt_names = vec![uri(person.user_uri())?, uri(person.device_uri())?];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
    let certificate = params.self_signed(&key)?.der().to_vec();
    let mut chain = Vec::new();
    chain.put_vector(&certificate);
    let credential = CredentialWithKey {
        credential: Credential::new(CredentialType::X509, chain),
        signature_key: key.der_bytes().to_vec().into(),
    };
    let bundle = KeyPackage::builder()
        .leaf_node_capabilities(group::capabilities())
        .build(
            group::SUITES[0],
            &OpenMlsRustCrypto::default(),
            &OwnKey(key),
            credential,
        )
        .map_err(|error| anyhow!("{error}"))?;
    let message = MlsMessageOut::from(bundle.key_package().clone());
    message.to_bytes().map_err(|error| anyhow!("{error}"))
}
