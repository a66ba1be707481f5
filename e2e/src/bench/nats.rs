//! A NATS server beside ours, where there is one, and as much of its protocol as it takes to compare: its fan-out, and its log.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::Semaphore,
};

use super::{ground::Running, load};

const PATIENCE: Duration = Duration::from_secs(30);
const CONNECT: &[u8] = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n";

/// A server on a loopback port.
#[derive(Debug)]
pub struct Server {
    _process: Running,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

/// When a stored message counts as stored.
#[derive(Debug, Clone, Copy)]
pub enum Sync {
    /// After fsync: as durable as ours.
    Always,
    /// The server's default: fsync comes later.
    Later,
}

/// The program, where `./dev` or the host has it.
pub fn program() -> Option<PathBuf> {
    std::env::var_os("CHANCERY_NATS_SERVER").map(PathBuf::from)
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start(program: &PathBuf, sync: Sync) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = super::ground::free_address()?;
        let interval = match sync {
            Sync::Always => "sync_interval: always",
            Sync::Later => "",
        };
        let options = folder.path().join("nats.conf");
        let mut file = std::fs::File::create(&options)?;
        write!(
            file,
            "listen: \"{address}\"\njetstream {{ store_dir: {:?}\n {interval}\n}}\n",
            folder.path().join("store")
        )?;
        let child = Command::new(program)
            .arg("-c")
            .arg(&options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{}", program.display()))?;
        let server = Self {
            _process: Running(child),
            address,
            _folder: folder,
        };
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_err() {
            ensure!(Instant::now() < until, "nats-server does not become ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    async fn connect(&self) -> anyhow::Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf)> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let (reader, mut writer) = socket.into_split();
        let mut reader = BufReader::new(reader);
        // INFO comes first.
        reader.read_line(&mut String::new()).await?;
        writer.write_all(CONNECT).await?;
        Ok((reader, writer))
    }

    /// One message after the other to `connections` with `subscriptions` each: for each of `rounds` the seconds until the last octet of the last delivery
    /// is there.
    ///
    /// # Errors
    /// A connection breaks.
    pub async fn fan_out(
        &self,
        connections: usize,
        subscriptions: usize,
        rounds: usize,
    ) -> anyhow::Result<Vec<f64>> {
        let payload = vec![b'x'; load::MESSAGE_BYTES];
        let expected: usize = (1..=subscriptions)
            .map(|sid| format!("MSG x {sid} {}\r\n", payload.len()).len() + payload.len() + 2)
            .sum();
        let arrived = Arc::new(Semaphore::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (mut reader, mut writer) = self.connect().await?;
            let mut out = String::new();
            for sid in 1..=subscriptions {
                out += &format!("SUB x {sid}\r\n");
            }
            out += "PING\r\n";
            writer.write_all(out.as_bytes()).await?;
            let mut line = String::new();
            while !line.starts_with("PONG") {
                line.clear();
                ensure!(reader.read_line(&mut line).await? > 0, "closed");
            }
            let arrived = arrived.clone();
            let socket = reader.into_inner().reunite(writer)?;
            tasks.spawn(async move {
                let mut octets = 0;
                loop {
                    socket.readable().await?;
                    let mut buffer = [0; 16 * 1024];
                    match socket.try_read(&mut buffer) {
                        Ok(0) => bail!("NATS closed a connection"),
                        Ok(length) => octets += length,
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(anyhow::Error::from(error)),
                    }
                    if octets >= expected {
                        octets -= expected;
                        arrived.add_permits(1);
                    }
                }
            });
        }
        let (_reader, mut publisher) = self.connect().await?;
        let mut message = format!("PUB x {}\r\n", payload.len()).into_bytes();
        message.extend(&payload);
        message.extend(b"\r\n");
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let began = Instant::now();
            publisher.write_all(&message).await?;
            let all = u32::try_from(connections)?;
            tokio::select! {
                all = arrived.acquire_many(all) => all?.forget(),
                Some(ended) = tasks.join_next() => {
                    ended??;
                }
            }
            times.push(began.elapsed().as_secs_f64());
        }
        Ok(times)
    }

    /// Messages that JetStream's file store acknowledges each second, with so many under way.
    ///
    /// # Errors
    /// It refuses one.
    pub async fn appends(&self, under_way: usize, measured: Duration) -> anyhow::Result<f64> {
        let (mut reader, mut writer) = self.connect().await?;
        let stream = r#"{"name":"bench","subjects":["log.*"],"storage":"file","num_replicas":1}"#;
        let create = format!(
            "SUB made 1\r\nSUB ack 2\r\nPUB $JS.API.STREAM.CREATE.bench made {}\r\n{stream}\r\n",
            stream.len()
        );
        writer.write_all(create.as_bytes()).await?;
        let made = answer(&mut reader).await?;
        ensure!(!made.contains("\"error\""), "{made}");
        let payload = vec![b'x'; load::MESSAGE_BYTES];
        let mut message = format!("PUB log.1 ack {}\r\n", payload.len()).into_bytes();
        message.extend(&payload);
        message.extend(b"\r\n");
        let window = Arc::new(Semaphore::new(under_way));
        let opened = window.clone();
        let sending = tokio::spawn(async move {
            while let Ok(place) = opened.acquire().await {
                place.forget();
                if writer.write_all(&message).await.is_err() {
                    return;
                }
            }
        });
        let count = std::sync::atomic::AtomicU64::new(0);
        let receiving = async {
            loop {
                let acknowledged = answer(&mut reader).await?;
                ensure!(!acknowledged.contains("\"error\""), "{acknowledged}");
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                window.add_permits(1);
            }
        };
        let rate = tokio::select! {
            rate = load::each_second(&count, measured) => Ok(rate),
            broken = receiving => broken,
        };
        sending.abort();
        rate
    }
}

/// The payload of the next message.
async fn answer(reader: &mut BufReader<OwnedReadHalf>) -> anyhow::Result<String> {
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(reader.read_line(&mut line).await? > 0, "NATS closed");
        if let Some(head) = line.strip_prefix("MSG ") {
            let length: usize = head.rsplit(' ').next().unwrap_or("").trim().parse()?;
            let mut payload = vec![0; length + 2];
            reader.read_exact(&mut payload).await?;
            return Ok(String::from_utf8_lossy(&payload[..length]).into_owned());
        }
        ensure!(!line.starts_with("-ERR"), "NATS says {line}");
    }
}
