//! Certificates of devices. Only the public key of a signing request is used: whatever else it asks for, nobody gets.

use chancery_proto::certificate::{DEVICE_EKU, device_uri, user_uri};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::CertificateSigningRequestDer;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::{error::Error, keys::Keys};

/// A signature scheme that certificates are issued for: RFC 8446 section 4.2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// 0x0807. The key that the device is known by: of its tokens, and of suites 1 and 3.
    Ed25519,
    /// 0x0403, for suite 2.
    P256,
}

impl Scheme {
    /// In the order that a device's certificates come in.
    pub const ALL: [Self; 2] = [Self::Ed25519, Self::P256];

    /// Its code.
    pub fn code(self) -> u16 {
        match self {
            Self::Ed25519 => 0x0807,
            Self::P256 => 0x0403,
        }
    }

    /// The scheme with this code, if certificates are issued for it.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|s| u32::from(s.code()) == code)
    }

    /// Key algorithm, and length of a raw key.
    fn key(self) -> (&'static rcgen::SignatureAlgorithm, usize) {
        match self {
            Self::Ed25519 => (&rcgen::PKCS_ED25519, 32),
            Self::P256 => (&rcgen::PKCS_ECDSA_P256_SHA256, 65),
        }
    }
}

/// A signing request whose own signature verifies, with a key of the scheme.
#[derive(Debug)]
pub struct SigningRequest {
    params: CertificateSigningRequestParams,
}

impl SigningRequest {
    /// Reads PKCS#10 and checks that it is signed by its own key.
    ///
    /// # Errors
    /// `MALFORMED`.
    pub fn parse(der: &[u8], scheme: Scheme) -> Result<Self, Error> {
        let der = CertificateSigningRequestDer::from(der.to_vec());
        let params = CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| Error::malformed("credentials.csr", error))?;
        let (algorithm, length) = scheme.key();
        if params.public_key.algorithm() != algorithm
            || params.public_key.der_bytes().len() != length
        {
            return Err(Error::malformed(
                "credentials.csr",
                "not a key of the credential's scheme",
            ));
        }
        Ok(Self { params })
    }

    /// The raw public key.
    pub fn public_key(&self) -> &[u8] {
        self.params.public_key.der_bytes()
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// This service's domain.
    pub domain: &'a str,
    /// The person.
    pub user: Uuid,
    /// The device.
    pub device: Uuid,
}

/// A device's certificate, DER, and the Unix second that it ends at.
///
/// # Errors
/// [`Error::Internal`] when it cannot be made.
pub fn issue(
    keys: &Keys,
    request: &SigningRequest,
    subject: Subject<'_>,
    now: OffsetDateTime,
    lifetime: Duration,
) -> Result<(Vec<u8>, OffsetDateTime), Error> {
    let internal = |error: rcgen::Error| Error::Internal(format!("issuing: {error}"));
    let uri = |text: String| text.try_into().map(SanType::URI).map_err(internal);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
    // One subject for each device: some MLS stacks refuse two leaves of one identity.
    params
        .distinguished_name
        .push(DnType::CommonName, subject.device.to_string());
    params.subject_alt_names = vec![
        uri(user_uri(subject.domain, subject.user))?,
        uri(device_uri(subject.domain, subject.device))?,
    ];
    let mut serial = *Uuid::new_v4().as_bytes();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + lifetime;
    let not_after = params.not_after;
    let certificate = params
        .signed_by(&request.params.public_key, &keys.issuer)
        .map_err(internal)?;
    Ok((certificate.der().to_vec(), not_after))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

    use super::*;

    fn request(algorithm: &'static rcgen::SignatureAlgorithm, greedy: bool) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        if greedy {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.subject_alt_names = vec![SanType::DnsName("root".try_into().unwrap())];
        }
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        (key, der)
    }

    #[test]
    fn a_request_gets_what_the_profile_says_and_nothing_that_it_asks_for() {
        for scheme in Scheme::ALL {
            gets_what_the_profile_says(scheme);
        }
    }

    fn gets_what_the_profile_says(scheme: Scheme) {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let keys = Keys::load_or_make(dir.path(), "a.example", now.unix_timestamp()).unwrap();
        let (key, csr) = request(scheme.key().0, true);
        let csr = SigningRequest::parse(&csr, scheme).unwrap();
        assert_eq!(csr.public_key(), key.public_key_raw());
        let subject = Subject {
            domain: "a.example",
            user: Uuid::from_u128(1),
            device: Uuid::from_u128(2),
        };
        let (der, not_after) = issue(&keys, &csr, subject, now, Duration::days(30)).unwrap();
        let seen = keys
            .anchors
            .verify_device(&der, now.unix_timestamp())
            .unwrap();
        assert_eq!(
            (seen.user, seen.device, seen.domain.as_str()),
            (subject.user, subject.device, "a.example")
        );
        assert_eq!(seen.public_key, key.public_key_raw());
        assert_eq!(seen.not_after, not_after.unix_timestamp());
        assert!(
            keys.anchors
                .verify_device(&der, seen.not_after + 1)
                .is_err()
        );
    }

    #[test]
    fn requests_that_are_damaged_or_of_another_kind_are_malformed() {
        let (_, csr) = request(&PKCS_ECDSA_P256_SHA256, false);
        assert!(SigningRequest::parse(&csr, Scheme::Ed25519).is_err());
        let (_, mut csr) = request(&PKCS_ED25519, false);
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(SigningRequest::parse(&csr, Scheme::Ed25519).is_err());
        assert!(SigningRequest::parse(&csr[..20], Scheme::Ed25519).is_err());
        assert!(SigningRequest::parse(b"", Scheme::Ed25519).is_err());
    }
}
