//! Options about Authentication Services: where they are, and how far they are believed.

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr};

/// What the operator has declared, as options of `serve`.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// Roots that may take the place of the one in use: SHA-256 of the certificates, in hex.
    pub roots: BTreeSet<String>,
    /// Roots that are not used, whatever was accepted before.
    pub distrusted: BTreeSet<String>,
    /// Token keys that may be added: RFC 7638 thumbprints.
    pub token_keys: BTreeSet<String>,
}

/// How far Authentication Services are believed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Trust in Authentication Services")]
pub struct TrustOptions {
    /// Interval at which Authentication Services send heartbeats on their status feeds. Nothing for three of them, or one whose time differs from the
    /// clock by more than two and the leeway, is an alarm.
    #[arg(
        long,
        env = "CHANCERY_DS_FEED_HEARTBEAT_SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub feed_heartbeat_seconds: u64,
    /// How long a status feed may not be heard before what the devices of its domain write is refused (`STATUS_FEED_STALE`); they may read. The default
    /// is more than the life of a token, without which nobody writes either.
    #[arg(
        long,
        env = "CHANCERY_DS_FEED_MAX_AGE_SECONDS",
        default_value_t = 900,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub feed_max_age_seconds: u64,
    /// SHA-256 in hex of a root certificate that may take the place of the one that was accepted for its domain. Repeatable. What was issued under the
    /// earlier one goes on, unless that is distrusted.
    #[arg(
        long = "accept-root",
        env = "CHANCERY_DS_ACCEPT_ROOTS",
        value_delimiter = ',',
        value_parser = fingerprint
    )]
    pub accept_roots: Vec<String>,
    /// SHA-256 in hex of a root certificate that is not used, whatever was accepted before. Repeatable.
    #[arg(
        long = "distrust-root",
        env = "CHANCERY_DS_DISTRUST_ROOTS",
        value_delimiter = ',',
        value_parser = fingerprint
    )]
    pub distrust_roots: Vec<String>,
    /// Thumbprint (RFC 7638) of a token key that may be added to those that were accepted for a domain. Repeatable.
    #[arg(
        long = "accept-token-key",
        env = "CHANCERY_DS_ACCEPT_TOKEN_KEYS",
        value_delimiter = ','
    )]
    pub accept_token_keys: Vec<String>,
}

impl TrustOptions {
    /// What the operator has declared.
    pub fn declared(&self) -> Declared {
        Declared {
            roots: self.accept_roots.iter().cloned().collect(),
            distrusted: self.distrust_roots.iter().cloned().collect(),
            token_keys: self.accept_token_keys.iter().cloned().collect(),
        }
    }
}

/// SHA-256 in hex, as `openssl x509 -fingerprint -sha256` prints it or without colons.
fn fingerprint(text: &str) -> Result<String, String> {
    let hex = text.replace(':', "").to_ascii_lowercase();
    if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(hex)
    } else {
        Err("64 hexadecimal digits are expected".into())
    }
}

/// Where an Authentication Service is, and which root vouches for it.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthServiceConfig {
    /// Its domain.
    pub domain: String,
    /// Its gRPC address, `http://…`, `https://…`.
    pub url: String,
    /// PEM file of the pinned root certificate.
    pub root: PathBuf,
    /// PEM file of the authority that signed its TLS certificate.
    pub ca: Option<PathBuf>,
}

impl fmt::Debug for AuthServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for AuthServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain, url, root, ..
        } = self;
        write!(f, "domain={domain},url={url},root={}", root.display())?;
        match &self.ca {
            Some(ca) => write!(f, ",ca={}", ca.display()),
            None => Ok(()),
        }
    }
}

impl FromStr for AuthServiceConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut domain, mut url, mut root, mut ca) = (None, None, None, None);
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not key=value"))?;
            match key {
                "domain" => domain = Some(value.to_owned()),
                "url" => url = Some(value.to_owned()),
                "root" => root = Some(PathBuf::from(value)),
                "ca" => ca = Some(PathBuf::from(value)),
                _ => return Err(format!("unknown key {key:?}")),
            }
        }
        let missing = |what: &str| format!("{what}=… is missing");
        Ok(Self {
            domain: domain
                .filter(|d| !d.is_empty())
                .ok_or_else(|| missing("domain"))?,
            url: url.ok_or_else(|| missing("url"))?,
            root: root.ok_or_else(|| missing("root"))?,
            ca,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_auth_service_is_read_and_written_alike() {
        let text = "domain=a.example,url=http://[::1]:7,root=/r.pem,ca=/ca.pem";
        assert_eq!(text.parse::<AuthServiceConfig>().unwrap().to_string(), text);
        for bad in [
            "",
            "domain=,url=u,root=r",
            "domain=a,url=u",
            "domain=a,url=u,root=r,x=1",
        ] {
            assert!(bad.parse::<AuthServiceConfig>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_as_other_tools_print_it() {
        let plain = "0a".repeat(32);
        let printed = vec!["0A"; 32].join(":");
        assert_eq!(fingerprint(&printed), Ok(plain.clone()));
        assert_eq!(fingerprint(&plain), Ok(plain.clone()));
        for bad in ["", &plain[1..], &plain.replace('0', "g")] {
            assert!(fingerprint(bad).is_err(), "{bad}");
        }
    }
}
