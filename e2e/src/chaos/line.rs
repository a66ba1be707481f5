//! Lines between processes, and the weather on them: what a network does to connections, done on purpose.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::{TcpListener, UnixListener, UnixStream},
    sync::Mutex as AsyncMutex,
};

use super::double::{Double, EARLY, Piece, Rewriter, Swallower};

/// How long the far side of an orphaned connection stays open: its work is done, its answer reaches nobody.
const ORPHANED: Duration = Duration::from_millis(1_500);
/// Smaller pieces are housekeeping of HTTP/2 and hold no request.
const REQUEST_BYTES: usize = 120;
/// The same for answers.
const ANSWER_BYTES: usize = 30;

/// What happens to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Nothing.
    Fair,
    /// Every piece waits.
    Slow(Duration),
    /// A connection ends.
    Cut,
    /// A connection ends in the middle of a request.
    CutRequest,
    /// A connection ends in the middle of an answer.
    CutAnswer,
    /// A request arrives whole, then its sender is cut off: it is carried out, and the answer reaches nobody.
    LoseAnswer,
    /// The same for the COMMIT of a transaction.
    LoseCommit,
}

#[derive(Debug)]
struct Sky {
    weather: Weather,
    /// Connections that it may still end.
    left: usize,
    hits: usize,
}

/// What to do with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Pass,
    Wait(Duration),
    End,
    Half,
    Orphan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

/// One line: where it is entered, where it leads, and its weather.
#[derive(Debug)]
pub struct Line {
    sky: Mutex<Sky>,
    /// Sockets of those who answer; a connection goes to the next of them that can be reached.
    far: Vec<PathBuf>,
    turn: AtomicUsize,
    double: Option<Arc<Double>>,
}

impl Line {
    fn new(far: Vec<PathBuf>, double: Option<Arc<Double>>) -> Arc<Self> {
        Arc::new(Self {
            sky: Mutex::new(Sky {
                weather: Weather::Fair,
                left: 0,
                hits: 0,
            }),
            far,
            turn: AtomicUsize::new(0),
            double,
        })
    }

    /// A line that is entered at a TCP port, and its address.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn tcp(far: Vec<PathBuf>) -> anyhow::Result<(Arc<Self>, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let line = Self::new(far, None);
        let at_work = line.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                // A line without this would be slow by itself.
                if near.set_nodelay(true).is_ok() {
                    tokio::spawn(at_work.clone().carry(near));
                }
            }
        });
        Ok((line, url))
    }

    /// A line to PostgreSQL that is entered at a unix socket, through a double's hands if there is one.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn unix(
        near: &std::path::Path,
        far: PathBuf,
        double: Option<Arc<Double>>,
    ) -> anyhow::Result<Arc<Self>> {
        let listener = UnixListener::bind(near).with_context(|| format!("{}", near.display()))?;
        let line = Self::new(vec![far], double);
        let at_work = line.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(at_work.clone().carry(near));
            }
        });
        Ok(line)
    }

    /// Changes the weather; it ends at most so many connections.
    pub fn set(&self, weather: Weather, connections: usize) {
        *self.sky() = Sky {
            weather,
            left: connections,
            hits: 0,
        };
    }

    /// How many pieces, or connections, the weather has hit.
    pub fn hits(&self) -> usize {
        self.sky().hits
    }

    fn sky(&self) -> std::sync::MutexGuard<'_, Sky> {
        self.sky.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act(&self, way: Way, piece: &[u8]) -> Act {
        let mut sky = self.sky();
        let request = way == Way::There && piece.len() >= REQUEST_BYTES;
        let act = match sky.weather {
            Weather::Fair => return Act::Pass,
            Weather::Slow(pause) => {
                sky.hits += 1;
                return Act::Wait(pause);
            }
            Weather::Cut => Act::End,
            Weather::CutRequest if request => Act::Half,
            Weather::CutAnswer if way == Way::Back && piece.len() >= ANSWER_BYTES => Act::Half,
            Weather::LoseAnswer if request => Act::Orphan,
            Weather::LoseCommit if memchr::memmem::find(piece, b"COMMIT\0").is_some() => {
                Act::Orphan
            }
            _ => return Act::Pass,
        };
        if sky.left == 0 {
            return Act::Pass;
        }
        sky.left -= 1;
        sky.hits += 1;
        act
    }

    async fn reach(&self) -> Option<UnixStream> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for next in 0..self.far.len() {
            let far = &self.far[(first + next) % self.far.len()];
            if let Ok(stream) = UnixStream::connect(far).await {
                return Some(stream);
            }
        }
        None
    }

    async fn carry<S: AsyncRead + AsyncWrite + Send + 'static>(self: Arc<Self>, near: S) {
        let Some(far) = self.reach().await else {
            return;
        };
        let (mut near_read, near_write) = tokio::io::split(near);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let near_write = AsyncMutex::new(near_write);
        let swallower = self.double.as_ref().map(|_| Swallower::default());
        let orphaned = {
            let there = self.there(
                &mut near_read,
                &near_write,
                &mut far_write,
                swallower.as_ref(),
            );
            let back = self.back(&mut far_read, &near_write, swallower.as_ref());
            let arming = async {
                match &self.double {
                    Some(double) => double.arming().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                orphaned = there => orphaned.unwrap_or(false),
                _ended = back => false,
                () = arming => false,
            }
        };
        drop((near_read, near_write));
        if orphaned {
            let mut nowhere = tokio::io::sink();
            let draining = tokio::io::copy(&mut far_read, &mut nowhere);
            // Whether it ended by itself or not: nobody hears of it.
            let _drained = tokio::time::timeout(ORPHANED, draining).await;
        }
    }

    /// From those who ask; true when the connection was orphaned.
    async fn there<S: AsyncRead + AsyncWrite + Send>(
        &self,
        near: &mut ReadHalf<S>,
        near_write: &AsyncMutex<WriteHalf<S>>,
        far: &mut WriteHalf<UnixStream>,
        swallower: Option<&Swallower>,
    ) -> std::io::Result<bool> {
        let mut rewriter = self.double.clone().map(Rewriter::new);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = near.read(&mut buffer).await?;
            let piece = &buffer[..length];
            if length == 0 {
                return Ok(false);
            }
            match self.act(Way::There, piece) {
                Act::Pass => {}
                Act::Wait(pause) => tokio::time::sleep(pause).await,
                Act::End => return Ok(false),
                Act::Half => {
                    far.write_all(&piece[..length / 2]).await?;
                    return Ok(false);
                }
                Act::Orphan => {
                    far.write_all(piece).await?;
                    return Ok(true);
                }
            }
            let (Some(rewriter), Some(swallower)) = (&mut rewriter, swallower) else {
                far.write_all(piece).await?;
                continue;
            };
            for piece in rewriter.feed(piece) {
                let Piece::EarlyCommit { bytes, number } = piece else {
                    far.write_all(piece.bytes()).await?;
                    continue;
                };
                swallower.ended(number).await;
                near_write.lock().await.write_all(&COMMITTED).await?;
                // Whoever dies now takes the COMMIT along, as a server would that answers first.
                let mut more = vec![0; 64 * 1024];
                let early = match tokio::time::timeout(EARLY, near.read(&mut more)).await {
                    Ok(Ok(0) | Err(_)) => return Ok(false),
                    Ok(Ok(length)) => rewriter.feed(&more[..length]),
                    Err(_) => Vec::new(),
                };
                swallower.drop_answer(number);
                far.write_all(&bytes).await?;
                for piece in early {
                    far.write_all(piece.bytes()).await?;
                }
            }
        }
    }

    /// From those who answer.
    async fn back<S: AsyncWrite + Send>(
        &self,
        far: &mut ReadHalf<UnixStream>,
        near: &AsyncMutex<WriteHalf<S>>,
        swallower: Option<&Swallower>,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = far.read(&mut buffer).await?;
            let piece = &buffer[..length];
            if length == 0 {
                return Ok(());
            }
            match self.act(Way::Back, piece) {
                Act::Pass => {}
                Act::Wait(pause) => tokio::time::sleep(pause).await,
                Act::Half => {
                    let mut near = near.lock().await;
                    near.write_all(&piece[..length / 2]).await?;
                    return near.flush().await;
                }
                Act::End | Act::Orphan => return Ok(()),
            }
            let mut near = near.lock().await;
            match swallower {
                Some(swallower) => near.write_all(&swallower.feed(piece)).await?,
                None => near.write_all(piece).await?,
            }
        }
    }
}

/// `CommandComplete` and `ReadyForQuery`, as PostgreSQL answers COMMIT.
const COMMITTED: [u8; 18] = *b"C\0\0\0\x0bCOMMIT\0Z\0\0\0\x05I";
