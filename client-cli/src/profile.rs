//! The profile: a folder with `profile.json` (addresses, pinned roots; no secrets), the store and its key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chancery_proto::command_line;
use rustls_pki_types::{
    CertificateDer,
    pem::{self, PemObject as _},
};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

const FORMAT: u32 = 1;
/// The most bytes that are read of a file with certificates.
pub const PEM_BYTES: u64 = 1 << 20;

/// A root that this profile trusts for one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedRoot {
    /// The domain whose people it vouches for.
    pub domain: String,
    /// Where that domain's Authentication Service gives its intermediates.
    pub url: String,
    /// DER, base64.
    pub root: String,
}

impl PinnedRoot {
    /// Pins the certificate of a PEM file; `-` is standard input.
    ///
    /// # Errors
    /// [`Failure::Usage`]: it is not there, or holds no certificate.
    pub fn from_file(domain: &str, url: &str, path: &Path) -> Result<Self, Failure> {
        let pem = command_line::read_text(path, PEM_BYTES)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| {
            let why = match error {
                pem::Error::NoItemsFound => "holds no certificate in PEM".to_owned(),
                other => other.to_string(),
            };
            Failure::Usage(format!("the root of {domain}: {}: {why}", path.display()))
        })?;
        Ok(Self {
            domain: domain.to_owned(),
            url: url.to_owned(),
            root: STANDARD.encode(der),
        })
    }

    /// DER.
    ///
    /// # Errors
    /// Damaged.
    pub fn der(&self) -> Result<Vec<u8>, Failure> {
        STANDARD
            .decode(&self.root)
            .map_err(|_| Failure::Profile(format!("the pinned root of {} is damaged", self.domain)))
    }
}

/// What `profile.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Of this file.
    pub format: u32,
    /// This device's domain.
    pub domain: String,
    /// Address of its Authentication Service.
    pub auth_url: String,
    /// The domain that orders its groups.
    pub delivery_domain: String,
    /// Address of the Delivery Service.
    pub delivery_url: String,
    /// Pinned roots: its own domain's, and others'.
    pub roots: Vec<PinnedRoot>,
    /// PEM of the authority of the servers' TLS certificates, for `https://` addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<String>,
}

impl Profile {
    /// A new one.
    pub fn new(auth_url: &str, delivery_url: &str) -> Self {
        Self {
            format: FORMAT,
            domain: String::new(),
            auth_url: auth_url.to_owned(),
            delivery_domain: String::new(),
            delivery_url: delivery_url.to_owned(),
            roots: Vec::new(),
            tls_ca: None,
        }
    }

    fn path(folder: &Path) -> PathBuf {
        folder.join("profile.json")
    }

    /// Reads the profile of a folder.
    ///
    /// # Errors
    /// Not enrolled yet, damaged, or of a newer program.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let path = Self::path(folder);
        let text = fs::read(&path).map_err(|error| {
            Failure::Profile(format!(
                "{}: {error}; enroll first, or name the folder with --profile",
                path.display()
            ))
        })?;
        let profile: Self = serde_json::from_slice(&text)
            .map_err(|error| Failure::Profile(format!("{}: {error}", path.display())))?;
        if profile.format > FORMAT {
            return Err(Failure::Profile(format!(
                "{}: format {} is newer than this program's {FORMAT}",
                path.display(),
                profile.format
            )));
        }
        Ok(profile)
    }

    /// Replaces the file in one step.
    ///
    /// # Errors
    /// The file system.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let path = Self::path(folder);
        let unfinished = folder.join("profile.json.new");
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| Failure::Profile(error.to_string()))?;
        fs::write(&unfinished, text)
            .and_then(|()| fs::rename(&unfinished, &path))
            .map_err(|error| Failure::Profile(format!("{}: {error}", path.display())))
    }

    /// Pins a root, in place of an earlier one of the same domain.
    pub fn pin(&mut self, root: PinnedRoot) {
        self.roots.retain(|known| known.domain != root.domain);
        self.roots.push(root);
    }
}

/// Makes the folder, for its owner only.
///
/// # Errors
/// The file system.
pub fn prepare_folder(folder: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Failure::Profile(format!("{}: {error}", folder.display())))
}
