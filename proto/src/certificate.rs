//! The device certificate profile: what a leaf, an intermediate and a pinned root must be, and how a device's certificate is verified at a time.
//!
//! - A leaf names its user and device in two SAN URIs, `mimi://<domain>/u/<uuid>` and `mimi://<domain>/d/<uuid>`, has an Ed25519 or a P-256 key and
//!   the extended key usage [`DEVICE_EKU`]. Every authority signs with Ed25519.
//! - An intermediate counts only after it verified against the pinned root, within its validity.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
    TrustAnchor, UnixTime,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// Extended key usage of device certificates and of the intermediates above them, from the private arc of UUID-based OIDs.
pub const DEVICE_EKU: &[u64] = &[2, 25, 3_231_478_522, 1];

/// The OID's DER content octets, as the verifier wants it.
const DEVICE_EKU_DER: &[u8] = &[0x69, 0x8c, 0x84, 0xf1, 0xe5, 0x7a, 0x01];

/// Extended key usage of the certificate that signs the status feed, `2.25.3231478522.2`.
pub const STATUS_EKU: &[u64] = &[2, 25, 3_231_478_522, 2];

const STATUS_EKU_DER: &[u8] = &[0x69, 0x8c, 0x84, 0xf1, 0xe5, 0x7a, 0x02];

/// Why a certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate, or not of the profile.
    #[error("not of the profile: {0}")]
    Profile(&'static str),
    /// It does not verify at this time against the anchors.
    #[error("does not verify: {0}")]
    Invalid(String),
}

/// What a device's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCertificate {
    /// The vouching Authentication Service.
    pub domain: String,
    /// The user's UUID.
    pub user: Uuid,
    /// The device's UUID.
    pub device: Uuid,
    /// Raw key: 32 bytes of Ed25519, or a P-256 point in 65 bytes, uncompressed.
    pub public_key: Vec<u8>,
    /// Unix seconds, inclusive.
    pub not_before: i64,
    /// Unix seconds, inclusive.
    pub not_after: i64,
}

/// A pinned root with the intermediates that verified against it.
#[derive(Debug, Clone)]
pub struct Anchors {
    root: TrustAnchor<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    signing_keys: Vec<[u8; 32]>,
    by_root: Arc<Mutex<BTreeSet<[u8; 32]>>>,
    former: Vec<Self>,
}

/// Good signatures of a root that are remembered: it signs a few intermediates.
const BY_ROOT: usize = 64;

/// Ed25519. The signature over an intermediate comes up again with every leaf below it, and is computed once: whoever joins ten thousand verifies as many.
#[derive(Debug)]
struct Ed25519<'a>(&'a Anchors);

impl SignatureVerificationAlgorithm for Ed25519<'_> {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        webpki::ring::ED25519.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        webpki::ring::ED25519.signature_alg_id()
    }

    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let verify = || webpki::ring::ED25519.verify_signature(public_key, message, signature);
        let root_key = &self.0.root.subject_public_key_info;
        // With these lengths, which all that is good has, no two signatures have the same digest.
        let whole = public_key.len() == 32 && signature.len() == 64;
        if !whole || !root_key.ends_with(public_key) {
            return verify();
        }
        let digest: [u8; 32] = Sha256::new()
            .chain_update(public_key)
            .chain_update(signature)
            .chain_update(message)
            .finalize()
            .into();
        let remembered = || {
            self.0
                .by_root
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if remembered().contains(&digest) {
            return Ok(());
        }
        verify()?;
        let mut remembered = remembered();
        if remembered.len() < BY_ROOT {
            remembered.insert(digest);
        }
        Ok(())
    }
}

fn time(now: i64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        u64::try_from(now).unwrap_or(0),
    ))
}

impl Anchors {
    /// Pins a root. Intermediates that are no CA with path length 0 and keyCertSign, or are not valid at `now`, are left out.
    ///
    /// # Errors
    /// The root is no CA certificate within its validity.
    pub fn pinned(
        root_der: &[u8],
        intermediates: &[Vec<u8>],
        now: i64,
    ) -> Result<Self, CertificateError> {
        let der = CertificateDer::from(root_der.to_vec());
        let root = anchor_from_trusted_cert(&der)
            .map_err(|error| CertificateError::Invalid(error.to_string()))?
            .to_owned();
        let (_, parsed) =
            X509Certificate::from_der(root_der).map_err(|_| CertificateError::Profile("root"))?;
        if !parsed.is_ca() || !valid_at(&parsed, now) {
            return Err(CertificateError::Profile("the root is no valid CA"));
        }
        let root_key = parsed.public_key().subject_public_key.data.as_ref();
        let mut signing_keys: Vec<[u8; 32]> = root_key.try_into().into_iter().collect();
        let mut valid = Vec::new();
        for der in intermediates {
            let Some(certificate) = intermediate_below(der, &parsed) else {
                continue;
            };
            if may_sign_devices(&certificate) {
                signing_keys.extend(ed25519_key(&certificate));
            }
            if valid_at(&certificate, now) {
                valid.push(CertificateDer::from(der.clone()));
            }
        }
        Ok(Self {
            root,
            intermediates: valid,
            signing_keys,
            by_root: Arc::default(),
            former: Vec::new(),
        })
    }

    /// The same, with roots whose place this one took: what was issued under them verifies as well.
    #[must_use]
    pub fn after(mut self, former: Vec<Self>) -> Self {
        self.former = former;
        self
    }

    /// Verifies a device's certificate at `at` (Unix seconds) and reads it.
    ///
    /// # Errors
    /// Not of the profile, not below the root, or not valid at that time.
    pub fn verify_device(
        &self,
        leaf_der: &[u8],
        at: i64,
    ) -> Result<DeviceCertificate, CertificateError> {
        let verify = |anchors: &Self| {
            anchors.verify_path(leaf_der, &anchors.intermediates, at, DEVICE_EKU_DER)
        };
        self.any(verify)?;
        read_device(leaf_der)
    }

    /// The raw keys that sign this domain's devices: the root's, and those of its intermediates, whether valid today or not.
    pub fn signing_keys(&self) -> &[[u8; 32]] {
        &self.signing_keys
    }

    /// The intermediates that are valid, DER.
    pub fn intermediates(&self) -> impl Iterator<Item = &[u8]> {
        self.intermediates.iter().map(|der| der.as_ref())
    }

    /// Reads a device's certificate that this root's keys signed, at whatever time: it may have ended since.
    ///
    /// # Errors
    /// Not of the profile, or signed by somebody else.
    pub fn vouched(&self, leaf_der: &[u8]) -> Result<DeviceCertificate, CertificateError> {
        signed_below(leaf_der, &[], &self.signing_keys)
    }

    /// Verifies the certificate that signed a status item, with the chain that came with the item, at the item's own time (Unix seconds); its raw key.
    /// The known intermediates are not asked: the item outlives them.
    ///
    /// # Errors
    /// The chain does not lead to the pinned root at that time, or is for another use.
    pub fn verify_status(
        &self,
        chain: &[impl AsRef<[u8]>],
        at: i64,
    ) -> Result<Vec<u8>, CertificateError> {
        let profile = CertificateError::Profile;
        let (leaf, above) = chain.split_first().ok_or(profile("an empty chain"))?;
        let above: Vec<_> = above
            .iter()
            .map(|der| CertificateDer::from(der.as_ref().to_vec()))
            .collect();
        self.any(|anchors| anchors.verify_path(leaf.as_ref(), &above, at, STATUS_EKU_DER))?;
        let (_, leaf) =
            X509Certificate::from_der(leaf.as_ref()).map_err(|_| profile("not a certificate"))?;
        Ok(leaf.public_key().subject_public_key.data.to_vec())
    }

    /// Whether it verifies under this root, or else under one before it; the failure under this one.
    fn any(
        &self,
        verify: impl Fn(&Self) -> Result<(), CertificateError>,
    ) -> Result<(), CertificateError> {
        verify(self).or_else(|failed| {
            let former = self.former.iter().any(|former| verify(former).is_ok());
            if former { Ok(()) } else { Err(failed) }
        })
    }

    fn verify_path(
        &self,
        leaf_der: &[u8],
        intermediates: &[CertificateDer<'static>],
        at: i64,
        usage: &'static [u8],
    ) -> Result<(), CertificateError> {
        let der = CertificateDer::from(leaf_der);
        let invalid = |error: webpki::Error| CertificateError::Invalid(error.to_string());
        let leaf = EndEntityCert::try_from(&der).map_err(invalid)?;
        leaf.verify_for_usage(
            &[&Ed25519(self)],
            std::slice::from_ref(&self.root),
            intermediates,
            time(at),
            KeyUsage::required(usage),
            None,
            None,
        )
        .map_err(invalid)?;
        Ok(())
    }
}

fn valid_at(certificate: &X509Certificate<'_>, now: i64) -> bool {
    let validity = certificate.validity();
    validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp()
}

/// A CA certificate with path length 0 that may sign certificates.
fn is_intermediate(certificate: &X509Certificate<'_>) -> bool {
    let signs = certificate
        .key_usage()
        .ok()
        .flatten()
        .is_some_and(|usage| usage.value.key_cert_sign());
    let path = certificate
        .basic_constraints()
        .ok()
        .flatten()
        .is_some_and(|c| c.value.ca && c.value.path_len_constraint == Some(0));
    signs && path
}

/// An intermediate that the root signed, at whatever time.
fn intermediate_below<'d>(
    der: &'d [u8],
    root: &X509Certificate<'_>,
) -> Option<X509Certificate<'d>> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    let below = certificate.issuer() == root.subject()
        && certificate
            .verify_signature(Some(root.public_key()))
            .is_ok();
    (rest.is_empty() && is_intermediate(&certificate) && below).then_some(certificate)
}

/// Its extended key usages, where it has any, name devices.
fn may_sign_devices(certificate: &X509Certificate<'_>) -> bool {
    match certificate.extended_key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => usage
            .value
            .other
            .iter()
            .any(|oid| oid.as_bytes() == DEVICE_EKU_DER),
        Err(_) => false,
    }
}

fn ed25519_key(certificate: &X509Certificate<'_>) -> Option<[u8; 32]> {
    let key = certificate.public_key();
    let is_ed25519 = key.algorithm.algorithm.to_id_string() == "1.3.101.112";
    let bytes = key.subject_public_key.data.as_ref().try_into().ok()?;
    is_ed25519.then_some(bytes)
}

fn signed_with(certificate: &X509Certificate<'_>, key: &[u8; 32]) -> bool {
    let signature = certificate.signature_value.data.as_ref();
    let signed = certificate.tbs_certificate.as_ref();
    webpki::ring::ED25519
        .verify_signature(key, signed, signature)
        .is_ok()
}

/// Reads a device's certificate that one of these raw Ed25519 keys signed, or an intermediate of `between` that one of them signed. Signatures alone
/// count, never a clock, so that everybody who has the same keys comes to the same answer.
///
/// # Errors
/// Not of the profile, without the device's key usage, or signed by somebody else.
pub fn signed_below(
    leaf_der: &[u8],
    between: &[Vec<u8>],
    keys: &[[u8; 32]],
) -> Result<DeviceCertificate, CertificateError> {
    let device = read_device(leaf_der)?;
    let profile = CertificateError::Profile;
    let (_, leaf) =
        X509Certificate::from_der(leaf_der).map_err(|_| profile("not a certificate"))?;
    let usage = leaf.extended_key_usage().ok().flatten();
    let is_device = usage.is_some_and(|u| {
        u.value
            .other
            .iter()
            .any(|oid| oid.as_bytes() == DEVICE_EKU_DER)
    });
    if !is_device {
        return Err(profile("not for a device"));
    }
    if keys.iter().any(|key| signed_with(&leaf, key)) {
        return Ok(device);
    }
    let signed_the_leaf = |der: &Vec<u8>| {
        let Ok((rest, certificate)) = X509Certificate::from_der(der) else {
            return false;
        };
        let fits =
            rest.is_empty() && is_intermediate(&certificate) && may_sign_devices(&certificate);
        fits && ed25519_key(&certificate).is_some_and(|key| signed_with(&leaf, &key))
            && keys.iter().any(|key| signed_with(&certificate, key))
    };
    if between.iter().any(signed_the_leaf) {
        return Ok(device);
    }
    Err(CertificateError::Invalid(
        "signed by another authority".into(),
    ))
}

/// Reads what a leaf says, without verifying it.
///
/// # Errors
/// Not of the profile.
pub fn read_device(leaf_der: &[u8]) -> Result<DeviceCertificate, CertificateError> {
    let profile = CertificateError::Profile;
    let (rest, certificate) =
        X509Certificate::from_der(leaf_der).map_err(|_| profile("not a certificate"))?;
    if !rest.is_empty() || certificate.is_ca() {
        return Err(profile("not a leaf"));
    }
    let mut names = Vec::new();
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() {
            for name in &san.general_names {
                match name {
                    GeneralName::URI(uri) => names.push(*uri),
                    _ => return Err(profile("a name that is no URI")),
                }
            }
        }
    }
    let (user_domain, user) = uri_of(&names, "/u/").ok_or(profile("no user URI"))?;
    let (domain, device) = uri_of(&names, "/d/").ok_or(profile("no device URI"))?;
    if names.len() != 2 || user_domain != domain {
        return Err(profile("not one user and one device of one domain"));
    }
    let key = certificate.public_key();
    let public_key = key.subject_public_key.data.to_vec();
    let curve = || Some(key.algorithm.parameters()?.as_oid().ok()?.to_id_string());
    let known = match key.algorithm.algorithm.to_id_string().as_str() {
        "1.3.101.112" => public_key.len() == 32,
        "1.2.840.10045.2.1" => {
            curve().as_deref() == Some("1.2.840.10045.3.1.7")
                && public_key.len() == 65
                && public_key[0] == 4
        }
        _ => false,
    };
    if !known {
        return Err(profile("neither an Ed25519 nor a P-256 key"));
    }
    Ok(DeviceCertificate {
        domain: domain.to_owned(),
        user,
        device,
        public_key,
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// The one URI of this kind: its domain and UUID.
fn uri_of<'a>(names: &[&'a str], kind: &str) -> Option<(&'a str, Uuid)> {
    names.iter().find_map(|name| {
        let (domain, id) = name.strip_prefix("mimi://")?.split_once(kind)?;
        let id = Uuid::try_parse(id).ok()?;
        (!domain.is_empty() && !domain.contains('/')).then_some((domain, id))
    })
}

/// Beginning and end of a certificate's validity, Unix seconds.
///
/// # Errors
/// Not a certificate.
pub fn validity(der: &[u8]) -> Result<(i64, i64), CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|_| CertificateError::Profile("not a certificate"))?;
    let validity = certificate.validity();
    Ok((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// `mimi://<domain>/u/<uuid>`.
pub fn user_uri(domain: &str, user: Uuid) -> String {
    format!("mimi://{domain}/u/{user}")
}

/// `mimi://<domain>/d/<uuid>`.
pub fn device_uri(domain: &str, device: Uuid) -> String {
    format!("mimi://{domain}/d/{device}")
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
    };

    use super::*;

    /// Within the validity that rcgen gives by itself, 1975 to 4096.
    const AT: i64 = 1_800_000_000;

    fn ca(name: &str, path: Option<u8>) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(path.map_or(
            BasicConstraints::Unconstrained,
            BasicConstraints::Constrained,
        ));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = path.map(|_| status()).into_iter().collect();
        params
    }

    fn status() -> ExtendedKeyUsagePurpose {
        ExtendedKeyUsagePurpose::Other(STATUS_EKU.to_vec())
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ED25519).unwrap()
    }

    #[test]
    fn signatures_alone_say_whose_device_it_is_whatever_the_time() {
        let root = CertifiedIssuer::self_signed(ca("root", None), key()).unwrap();
        let mut params = ca("below", Some(0));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
        let intermediate = CertifiedIssuer::signed_by(params, key(), &root).unwrap();
        let status = CertifiedIssuer::signed_by(ca("status", Some(0)), key(), &root).unwrap();
        let uri = |kind| {
            SanType::URI(
                format!("mimi://a.example/{kind}/{}", Uuid::nil())
                    .try_into()
                    .unwrap(),
            )
        };
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![uri("u"), uri("d")];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
        leaf.not_before = rcgen::date_time_ymd(2000, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let ended = leaf.clone().signed_by(&key(), &intermediate).unwrap();
        let by_status = leaf.clone().signed_by(&key(), &status).unwrap();
        let self_made = leaf.self_signed(&key()).unwrap();
        let above = [intermediate.der().to_vec(), status.der().to_vec()];
        let anchors = Anchors::pinned(root.der(), &above, AT).unwrap();
        assert!(anchors.verify_device(ended.der(), AT).is_err());
        assert!(anchors.vouched(ended.der()).is_ok());
        let root_key = &anchors.signing_keys()[..1];
        let others = Anchors::pinned(
            CertifiedIssuer::self_signed(ca("root", None), key())
                .unwrap()
                .der(),
            &above,
            AT,
        );
        let others = others.unwrap();
        for (certificate, between, keys, good) in [
            (&ended, &[][..], anchors.signing_keys(), true),
            (&ended, &above[..], root_key, true),
            (&ended, &[][..], root_key, false),
            (&ended, &above[..], others.signing_keys(), false),
            // An intermediate for another use, and nobody at all.
            (&by_status, &above[..], anchors.signing_keys(), false),
            (&self_made, &above[..], anchors.signing_keys(), false),
        ] {
            assert_eq!(signed_below(certificate.der(), between, keys).is_ok(), good);
        }
    }

    #[test]
    fn a_remembered_signature_of_the_root_vouches_for_nothing_else() {
        let root = CertifiedIssuer::self_signed(ca("root", None), key()).unwrap();
        let intermediate = CertifiedIssuer::signed_by(ca("below", Some(0)), key(), &root).unwrap();
        let mut leaf = CertificateParams::default();
        leaf.extended_key_usages = vec![status()];
        let leaf = leaf.signed_by(&key(), &intermediate).unwrap();
        let good = intermediate.der().to_vec();
        let anchors = Anchors::pinned(root.der(), &[], AT).unwrap();
        let verify =
            |above: &[u8]| anchors.verify_status(&[leaf.der().to_vec(), above.to_vec()], AT);
        for _ in 0..2 {
            assert_eq!(verify(&good).map(drop), Ok(()));
        }
        assert_eq!(anchors.by_root.lock().unwrap().len(), 1, "it is remembered");
        for place in 0..good.len() {
            let mut forged = good.clone();
            forged[place] ^= 1;
            assert!(verify(&forged).is_err(), "{place}");
        }
        assert_eq!(anchors.by_root.lock().unwrap().len(), 1);
    }
}
