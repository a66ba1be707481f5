//! Sockets: TCP or unix, plaintext only where nobody else can listen in.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, ensure};
use tokio::net::{TcpListener, UnixListener};

/// `127.0.0.1:7400`, `[::1]:7400` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// Port 0 picks a free one.
    Tcp(SocketAddr),
    /// A stale socket file is replaced.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| format!("{text:?} is neither IP:PORT nor unix:/path")),
        }
    }
}

/// PEM files of a server's certificate chain and key.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, the leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A bound socket, with TLS if it has any.
pub struct Bound {
    pub(crate) socket: Socket,
    pub(crate) tls: Option<tonic::transport::Identity>,
    addr: ListenAddr,
}

impl Bound {
    /// The address, with the real port.
    pub fn local_addr(&self) -> &ListenAddr {
        &self.addr
    }

    /// How a gRPC client on this machine writes it.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match &self.addr {
            ListenAddr::Tcp(addr) => format!("{scheme}://{addr}"),
            ListenAddr::Unix(path) => format!("unix:{}", path.display()),
        }
    }
}

/// Binds. Plaintext is refused beyond loopback and unix sockets, unless the operator insists.
///
/// # Errors
/// Refused plaintext, unreadable TLS files, or the socket cannot be bound.
pub async fn bind(
    addr: &ListenAddr,
    tls: Option<&TlsFiles>,
    insecure_plaintext: bool,
) -> anyhow::Result<Bound> {
    let identity = tls.map(identity).transpose()?;
    let (socket, addr) = match addr {
        ListenAddr::Tcp(tcp) => {
            ensure!(
                tcp.ip().is_loopback() || identity.is_some() || insecure_plaintext,
                "{tcp} is not loopback: give --tls-cert and --tls-key, or accept plaintext with --insecure-plaintext"
            );
            let listener = TcpListener::bind(tcp)
                .await
                .with_context(|| format!("cannot listen on {tcp}"))?;
            let addr = ListenAddr::Tcp(listener.local_addr()?);
            (Socket::Tcp(listener), addr)
        }
        ListenAddr::Unix(path) => (Socket::Unix(bind_unix(path)?), addr.clone()),
    };
    Ok(Bound {
        socket,
        tls: identity,
        addr,
    })
}

fn identity(files: &TlsFiles) -> anyhow::Result<tonic::transport::Identity> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("{}", path.display()));
    Ok(tonic::transport::Identity::from_pem(
        read(&files.cert)?,
        read(&files.key)?,
    ))
}

/// A socket file that nobody answers on is left over from a process that was killed.
fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("{} is in use", path.display());
    }
    if path.exists() {
        std::fs::remove_file(path).with_context(|| format!("{}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, owner_only)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in ["127.0.0.1:0", "[::1]:7400", "unix:/run/x.sock"] {
            assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
        }
        for bad in ["", "unix:", "localhost:1", "127.0.0.1"] {
            assert!(bad.parse::<ListenAddr>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn plaintext_beyond_loopback_must_be_insisted_on() {
        let any = "0.0.0.0:0".parse().unwrap();
        assert!(bind(&any, None, false).await.is_err());
        assert!(bind(&any, None, true).await.is_ok());
        assert!(
            bind(&"127.0.0.1:0".parse().unwrap(), None, false)
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let addr = ListenAddr::Unix(dir.path().join("s"));
        let first = bind(&addr, None, false).await.unwrap();
        assert!(bind(&addr, None, false).await.is_err());
        drop(first);
        assert!(bind(&addr, None, false).await.is_ok());
    }
}
