//! The service's keys, as files that only their owner reads: root, intermediate, token key. What is missing is made at the first start; what is there is used.
//!
//! The root's key may be taken away (kept offline) once the intermediate exists.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chancery_proto::{
    certificate::{Anchors, DEVICE_EKU, STATUS_EKU},
    token,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use time::{Duration, OffsetDateTime};

/// File of the root certificate, for clients and Delivery Services to pin.
pub const ROOT_PEM: &str = "root.pem";

const ROOT_YEARS: i64 = 20;
const INTERMEDIATE_YEARS: i64 = 5;

/// Everything that this service signs with, and what vouches for it.
pub struct Keys {
    /// The pinned root, DER.
    pub root_der: Vec<u8>,
    /// The intermediate that signs devices' certificates, DER.
    pub intermediate_der: Vec<u8>,
    /// The same, able to sign.
    pub issuer: Issuer<'static, KeyPair>,
    /// Root and intermediate as verifiers see them.
    pub anchors: Anchors,
    /// PKCS#8 of the token key.
    pub token_pkcs8: Vec<u8>,
    /// Its raw public key.
    pub token_key: Vec<u8>,
    /// Its id: the thumbprint of RFC 7638.
    pub token_kid: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("token_kid", &self.token_kid)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the folder; makes what is missing. `now` is Unix seconds.
    ///
    /// # Errors
    /// A file that cannot be read or written, is readable by others, or does not fit the rest.
    pub fn load_or_make(folder: &Path, domain: &str, now: i64) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let lock = File::create(folder.join("lock"))?;
        // Two nodes that start for the first time at once make one set of keys.
        lock.lock().context("the lock of the keys' folder")?;
        let now = OffsetDateTime::from_unix_timestamp(now)?;
        let folder = Folder(folder);
        let root_der = folder.root(domain, now)?;
        let (intermediate_der, issuer) = folder.intermediate(domain, now)?;
        let token_pkcs8 = folder.key("token.key")?.serialize_der();
        let anchors = Anchors::pinned(
            &root_der,
            std::slice::from_ref(&intermediate_der),
            now.unix_timestamp(),
        )?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&token_pkcs8)
            .map_err(|_| anyhow::anyhow!("token.key is no Ed25519 key"))?;
        let token_key = pair.public_key().as_ref().to_vec();
        Ok(Self {
            token_kid: token::thumbprint(&token_key),
            token_key,
            token_pkcs8,
            anchors,
            issuer,
            intermediate_der,
            root_der,
        })
    }

    /// RFC 7517 JWK set of the token keys.
    pub fn jwks(&self) -> String {
        let key = serde_json::json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
            "kid": self.token_kid, "x": URL_SAFE_NO_PAD.encode(&self.token_key),
        });
        serde_json::json!({ "keys": [key] }).to_string()
    }
}

struct Folder<'a>(&'a Path);

impl Folder<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A private key that must be there, and be its owner's only.
    fn existing_key(&self, name: &str) -> anyhow::Result<KeyPair> {
        let path = self.path(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let mode = file.metadata()?.permissions().mode();
        ensure!(
            mode & 0o077 == 0,
            "{} can be read by others: chmod 600 {0}",
            path.display()
        );
        let der = PrivatePkcs8KeyDer::from_pem_file(&path)
            .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)
            .with_context(|| format!("{}: not an Ed25519 key (PKCS#8)", path.display()))
    }

    fn key(&self, name: &str) -> anyhow::Result<KeyPair> {
        if self.path(name).exists() {
            return self.existing_key(name);
        }
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        self.write(name, &key.serialize_pem(), 0o600)?;
        Ok(key)
    }

    fn certificate(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let path = self.path(name);
        let der = CertificateDer::from_pem_file(&path)
            .map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Ok(der.to_vec())
    }

    /// Written whole and synced before it gets its name.
    fn write(&self, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        let unfinished = self.path(&format!("{name}.new"));
        if unfinished.exists() {
            fs::remove_file(&unfinished)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&unfinished)
            .with_context(|| format!("cannot write {}", unfinished.display()))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, self.path(name))?;
        File::open(self.0)?.sync_all()?;
        Ok(())
    }

    fn root(&self, domain: &str, now: OffsetDateTime) -> anyhow::Result<Vec<u8>> {
        if !self.path(ROOT_PEM).exists() {
            let key = self.key("root.key")?;
            let params = authority(domain, "root", 1, now, ROOT_YEARS);
            let certificate = params.self_signed(&key)?;
            self.write(ROOT_PEM, &certificate.pem(), 0o644)?;
        }
        self.certificate(ROOT_PEM)
    }

    fn intermediate(
        &self,
        domain: &str,
        now: OffsetDateTime,
    ) -> anyhow::Result<(Vec<u8>, Issuer<'static, KeyPair>)> {
        const PEM: &str = "intermediate.pem";
        const KEY: &str = "intermediate.key";
        if !self.path(PEM).exists() {
            let root_key = self
                .existing_key("root.key")
                .context("an intermediate must be made, and the root's key signs it")?;
            let root_der = CertificateDer::from(self.certificate(ROOT_PEM)?);
            let root = Issuer::from_ca_cert_der(&root_der, root_key)?;
            let mut params = authority(domain, "intermediate", 0, now, INTERMEDIATE_YEARS);
            params.extended_key_usages = [DEVICE_EKU, STATUS_EKU]
                .map(|usage| ExtendedKeyUsagePurpose::Other(usage.to_vec()))
                .to_vec();
            let certificate = params.signed_by(&self.key(KEY)?, &root)?;
            self.write(PEM, &certificate.pem(), 0o644)?;
        }
        let der = self.certificate(PEM)?;
        let issuer = Issuer::from_ca_cert_der(
            &CertificateDer::from(der.as_slice()),
            self.existing_key(KEY)?,
        )?;
        Ok((der, issuer))
    }
}

fn authority(
    domain: &str,
    level: &str,
    path_length: u8,
    now: OffsetDateTime,
    years: i64,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{domain} Chancery {level}"));
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(365 * years);
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn the_first_start_makes_them_and_the_next_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::load_or_make(dir.path(), "a.example", NOW).unwrap();
        let again = Keys::load_or_make(dir.path(), "a.example", NOW + 9).unwrap();
        assert_eq!(first.root_der, again.root_der);
        assert_eq!(first.intermediate_der, again.intermediate_der);
        assert_eq!(first.token_kid, again.token_kid);
        assert!(first.jwks().contains(&first.token_kid));
    }

    #[test]
    fn the_root_key_may_be_taken_away_and_others_may_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        Keys::load_or_make(dir.path(), "a.example", NOW).unwrap();
        for name in ["root.key", "intermediate.key", "token.key"] {
            let mode = fs::metadata(path(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        fs::remove_file(path("root.key")).unwrap();
        Keys::load_or_make(dir.path(), "a.example", NOW).unwrap();
        fs::set_permissions(path("token.key"), PermissionsExt::from_mode(0o640)).unwrap();
        let refused = Keys::load_or_make(dir.path(), "a.example", NOW).unwrap_err();
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
        fs::set_permissions(path("token.key"), PermissionsExt::from_mode(0o600)).unwrap();
        fs::remove_file(path("intermediate.pem")).unwrap();
        let refused = Keys::load_or_make(dir.path(), "a.example", NOW).unwrap_err();
        assert!(format!("{refused:#}").contains("root's key"), "{refused:#}");
    }
}
