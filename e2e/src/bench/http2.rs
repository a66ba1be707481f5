//! A gRPC client that only counts what arrives: the same for every server that is compared, and light, since it shares the machine with them.
//!
//! It knows as much of HTTP/2 (RFC 9113) as that takes: it opens streams with one request each, announces windows that never fill, and looks at frame
//! headers.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, bail};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Notify};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: u32 = 65_535;

/// A request that opens a stream.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Of the method.
    pub path: &'static str,
    /// For `authorization`.
    pub token: String,
    /// The encoded request.
    pub message: Vec<u8>,
}

/// Whole DATA frames, told from one another by their length alone.
#[derive(Debug, Clone, Copy)]
pub enum Sign {
    /// What is waited for is larger than everything else.
    AtLeast(usize),
    /// It has exactly this length.
    Exactly(usize),
}

impl Sign {
    fn is(self, length: usize) -> bool {
        match self {
            Self::AtLeast(least) => length >= least,
            Self::Exactly(exact) => length == exact,
        }
    }
}

/// What arrived on all streams together.
#[derive(Debug)]
pub struct Count {
    sign: Sign,
    /// Of the frame after which a stream waits for what comes.
    ready: Option<Sign>,
    /// Streams that were answered.
    answered: AtomicUsize,
    /// Streams that are ready.
    readied: AtomicUsize,
    /// Frames that were waited for.
    arrived: AtomicUsize,
    changed: Notify,
    /// Nobody reads.
    held: AtomicBool,
    released: Notify,
}

impl Count {
    /// Waits for frames of this sign.
    pub fn of(sign: Sign) -> Arc<Self> {
        Self::after(sign, None)
    }

    /// The same, and counts streams that are ready by another sign.
    pub fn after(sign: Sign, ready: Option<Sign>) -> Arc<Self> {
        Arc::new(Self {
            sign,
            ready,
            answered: AtomicUsize::new(0),
            readied: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            changed: Notify::new(),
            held: AtomicBool::new(false),
            released: Notify::new(),
        })
    }

    /// From now on nobody reads or answers, as when a network stalls.
    pub fn hold(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// They go on.
    pub fn release(&self) {
        self.held.store(false, Ordering::Release);
        self.released.notify_waiters();
    }

    async fn unless_held(&self) {
        loop {
            let released = self.released.notified();
            if !self.held.load(Ordering::Acquire) {
                return;
            }
            released.await;
        }
    }

    /// Waits until so many streams were answered.
    pub async fn answers(&self, count: usize) {
        self.reaches(&self.answered, count).await;
    }

    /// Waits until so many streams are ready.
    pub async fn ready(&self, count: usize) {
        self.reaches(&self.readied, count).await;
    }

    /// Waits until so many frames arrived.
    pub async fn arrivals(&self, count: usize) {
        self.reaches(&self.arrived, count).await;
    }

    /// Frames that arrived so far.
    pub fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Acquire)
    }

    async fn reaches(&self, value: &AtomicUsize, count: usize) {
        loop {
            let changed = self.changed.notified();
            if value.load(Ordering::Acquire) >= count {
                return;
            }
            changed.await;
        }
    }

    fn add(&self, value: &AtomicUsize) {
        value.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }
}

/// Opens one connection with a stream for each opening, and counts what arrives on it until it is dropped.
///
/// # Errors
/// It cannot be made, or it breaks.
pub async fn listen(
    address: SocketAddr,
    openings: &[Opening],
    count: Arc<Count>,
) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<()>>> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut out = PREFACE.to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut settings = vec![0, 4];
    settings.extend(LARGEST_WINDOW.to_be_bytes());
    frame(&mut out, SETTINGS, 0, 0, &settings);
    let more = LARGEST_WINDOW - DEFAULT_WINDOW;
    frame(&mut out, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
    for (opening, stream) in openings.iter().zip((1u32..).step_by(2)) {
        let headers = headers(address, opening);
        frame(&mut out, HEADERS, END_HEADERS, stream, &headers);
        let mut body = vec![0];
        body.extend(u32::try_from(opening.message.len())?.to_be_bytes());
        body.extend(&opening.message);
        frame(&mut out, DATA, END_STREAM, stream, &body);
    }
    socket.write_all(&out).await?;
    Ok(tokio::spawn(count_frames(socket, count)))
}

async fn count_frames(socket: TcpStream, count: Arc<Count>) -> anyhow::Result<()> {
    let mut parser = Parser::default();
    loop {
        socket.readable().await?;
        count.unless_held().await;
        // Not kept while waiting: thousands of connections share it.
        let mut buffer = [0; 16 * 1024];
        match socket.try_read(&mut buffer) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(length) => parser.feed(&buffer[..length], &count)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if !parser.answer.is_empty() {
            socket.try_write(&parser.answer).context("an answer")?;
            parser.answer.clear();
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    out.extend(&length[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// RFC 7541 section 6.2.2: literal fields that nobody has to remember.
fn headers(address: SocketAddr, opening: &Opening) -> Vec<u8> {
    let mut block = Vec::new();
    let authority = address.to_string();
    let token = format!("Bearer {}", opening.token);
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", opening.path),
        (":authority", &authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", &token),
    ] {
        block.push(0);
        for text in [name, value] {
            let mut rest = text.len();
            if rest < 127 {
                block.push(u8::try_from(rest).unwrap_or(0));
            } else {
                block.push(127);
                rest -= 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128).unwrap_or(0) | 128);
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap_or(0));
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Walks over frames in pieces of any size.
#[derive(Debug, Default)]
struct Parser {
    header: [u8; HEADER_BYTES],
    have: usize,
    /// Of the payload.
    left: usize,
    /// The last octets of a payload, for what is answered with them.
    tail: [u8; 8],
    answer: Vec<u8>,
}

impl Parser {
    fn feed(&mut self, mut bytes: &[u8], count: &Count) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            if self.have < HEADER_BYTES {
                let take = bytes.len().min(HEADER_BYTES - self.have);
                self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
                self.have += take;
                bytes = &bytes[take..];
                if self.have < HEADER_BYTES {
                    return Ok(());
                }
                self.left = self.length();
            } else {
                let take = bytes.len().min(self.left);
                if self.header[3] == PING {
                    let at = 8usize.saturating_sub(self.left);
                    self.tail[at..at + take].copy_from_slice(&bytes[..take]);
                }
                self.left -= take;
                bytes = &bytes[take..];
            }
            if self.left == 0 {
                self.have = 0;
                self.whole(count)?;
            }
        }
        Ok(())
    }

    fn length(&self) -> usize {
        let [a, b, c, ..] = self.header;
        u32::from_be_bytes([0, a, b, c]) as usize
    }

    fn whole(&mut self, count: &Count) -> anyhow::Result<()> {
        let [_, _, _, kind, flags, ..] = self.header;
        match kind {
            DATA if count.sign.is(self.length()) => count.add(&count.arrived),
            DATA if count.ready.is_some_and(|sign| sign.is(self.length())) => {
                count.add(&count.readied);
            }
            HEADERS if flags & END_STREAM != 0 => bail!("a stream was refused"),
            HEADERS => count.add(&count.answered),
            SETTINGS if flags & ACK == 0 => frame(&mut self.answer, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut self.answer, PING, ACK, 0, &self.tail),
            RST_STREAM | GOAWAY => bail!("the server ended a stream or a connection"),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let mut bytes = Vec::new();
        frame(&mut bytes, SETTINGS, 0, 0, &[]);
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &[1, 2, 3]);
        frame(&mut bytes, DATA, 0, 1, &[0; 40]);
        frame(&mut bytes, DATA, 0, 1, &[0; 4]);
        frame(&mut bytes, PING, 0, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
        for size in 1..bytes.len() {
            let (mut parser, count) = (Parser::default(), Count::of(Sign::AtLeast(40)));
            for piece in bytes.chunks(size) {
                parser.feed(piece, &count).unwrap();
            }
            assert_eq!(count.arrived.load(Ordering::Relaxed), 1);
            assert_eq!(count.answered.load(Ordering::Relaxed), 1);
            let mut answers = Vec::new();
            frame(&mut answers, SETTINGS, ACK, 0, &[]);
            frame(&mut answers, PING, ACK, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
            assert_eq!(parser.answer, answers);
        }
    }
}
