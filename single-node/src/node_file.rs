//! `node.json`: where a running node can be reached. Written whole once everything answers; true as long as its process lives.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The file's name in the node's folder.
pub const FILE_NAME: &str = "node.json";

/// What `node.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// The node's process id. A file that names a dead process is left over.
    pub pid: u32,
    /// PostgreSQL's process id; changes when PostgreSQL had to be started again.
    pub postgres_pid: u32,
    /// The domain that the Delivery Service orders groups for.
    pub delivery_domain: String,
    /// The Delivery Service's address, `http://…`.
    pub delivery_url: String,
    /// One Authentication Service for each domain, in the order of the options.
    pub auth: Vec<AuthFile>,
}

/// One Authentication Service of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthFile {
    /// The domain it vouches for.
    pub domain: String,
    /// Its address, `http://…`.
    pub url: String,
    /// The unix socket of its admin listener.
    pub admin_socket: PathBuf,
    /// Its root certificate (PEM), for clients to pin.
    pub root_pem: PathBuf,
}

impl NodeFile {
    /// Reads the file of the node in `dir`.
    ///
    /// # Errors
    /// When it is missing, unreadable or not ours.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE_NAME);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Replaces the file in one step: a reader sees the old or the new one.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self).context("cannot encode node.json")?;
        let unfinished = dir.join("node.json.new");
        let written = fs::File::create(&unfinished).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.with_context(|| format!("cannot write {}", unfinished.display()))?;
        fs::rename(&unfinished, dir.join(FILE_NAME)).context("cannot put node.json in place")
    }

    /// Takes the last run's file away, and returns what it said, so that its existence means "ready" again.
    pub(crate) fn take(dir: &Path) -> Option<Self> {
        let last = Self::read(dir).ok();
        if let Err(error) = fs::remove_file(dir.join(FILE_NAME)) {
            tracing::debug!(%error, "no node.json of an earlier run");
        }
        last
    }

    /// The address of `domain`'s Authentication Service in this file.
    pub(crate) fn auth_url(&self, domain: &str) -> Option<&str> {
        let found = self.auth.iter().find(|auth| auth.domain == domain)?;
        Some(&found.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_replaced_whole_and_taken_once() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert!(NodeFile::take(dir.path()).is_none());
        let mut node = NodeFile {
            pid: 1,
            postgres_pid: 2,
            delivery_domain: "a.example".to_owned(),
            delivery_url: "http://127.0.0.1:1".to_owned(),
            auth: vec![AuthFile {
                domain: "a.example".to_owned(),
                url: "http://127.0.0.1:2".to_owned(),
                admin_socket: "/run/a.sock".into(),
                root_pem: "/root.pem".into(),
            }],
        };
        node.write(dir.path()).expect("written");
        node.postgres_pid = 3;
        node.write(dir.path()).expect("written again");
        assert_eq!(NodeFile::read(dir.path()).expect("read"), node);
        assert_eq!(node.auth_url("a.example"), Some("http://127.0.0.1:2"));
        assert_eq!(node.auth_url("b.example"), None);
        assert_eq!(NodeFile::take(dir.path()), Some(node));
        assert!(NodeFile::read(dir.path()).is_err());
    }
}
