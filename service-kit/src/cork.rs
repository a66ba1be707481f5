//! Sockets that write what comes together together.
//!
//! HTTP/2 flushes after every DATA frame that it does not copy. A server that has a frame for each of a hundred streams of one connection would make a
//! hundred system calls. Where that was seen to happen, a flush only promises one: it comes when the connection's task, which has run to its end, is polled
//! again. A connection that never has two frames at a time flushes at once.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What may wait to be written.
const CORKED_BYTES: usize = 64 * 1024;
/// So many writes of one flush each, and flushes are no longer put off.
const LONELY_WRITES: u8 = 16;

/// A socket whose flushes are put off to the next poll of its task.
///
/// Whoever uses it must poll it for reading whenever its task is woken, as every HTTP/2 connection does: that is when what was put off is written.
#[derive(Debug)]
pub(crate) struct Corked<S> {
    socket: S,
    waiting: Vec<u8>,
    /// Of `waiting`, what was written already.
    written: usize,
    /// The task was woken to write.
    woken: bool,
    /// Flushes since the task was last polled for reading.
    flushes: u32,
    /// While it is above zero, flushes are put off.
    cork: u8,
}

impl<S> Corked<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self {
            socket,
            waiting: Vec::new(),
            written: 0,
            woken: false,
            flushes: 0,
            cork: 0,
        }
    }

    /// The task begins anew: what it did in its last turn says whether it is worth waiting in the next one.
    fn new_turn(&mut self) {
        match std::mem::take(&mut self.flushes) {
            0 => {}
            1 => self.cork = self.cork.saturating_sub(1),
            _ => self.cork = LONELY_WRITES,
        }
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.waiting.get(self.written..) {
            match Pin::new(&mut self.socket).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => self.written += length,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // Thousands of idle connections must not keep what one busy moment needed.
        self.waiting = Vec::new();
        self.written = 0;
        self.woken = false;
        Poll::Ready(Ok(()))
    }

    /// How much may be added, once there is room for any.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= CORKED_BYTES
            && let Poll::Ready(Err(error)) = self.poll_write_out(cx)
        {
            return Poll::Ready(Err(error));
        }
        match CORKED_BYTES.saturating_sub(self.waiting.len()) {
            0 => Poll::Pending,
            room => Poll::Ready(Ok(room)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.new_turn();
        if !self.waiting.is_empty()
            && let Poll::Ready(Err(error)) = self.poll_write_out(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut room = std::task::ready!(self.poll_room(cx))?;
        let mut taken = 0;
        for slice in slices {
            let part = slice.len().min(room);
            self.waiting.extend_from_slice(&slice[..part]);
            room -= part;
            taken += part;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.flushes = self.flushes.saturating_add(1);
        if self.cork == 0 {
            return self.poll_write_out(cx);
        }
        if !std::mem::replace(&mut self.woken, true) {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Corked<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.socket.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
    };

    use super::*;

    /// Takes at most so much, each time.
    struct Socket {
        writes: Vec<Vec<u8>>,
        takes: usize,
    }

    impl AsyncRead for Socket {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let part = bytes.len().min(self.takes);
            if part == 0 {
                return Poll::Pending;
            }
            self.takes -= part;
            self.writes.push(bytes[..part].to_vec());
            Poll::Ready(Ok(part))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn corked(takes: usize) -> Corked<Socket> {
        Corked::new(Socket {
            writes: Vec::new(),
            takes,
        })
    }

    fn read(corked: &mut Corked<Socket>, cx: &mut Context<'_>) {
        let polled = Pin::new(corked).poll_read(cx, &mut ReadBuf::new(&mut []));
        assert!(polled.is_pending());
    }

    #[test]
    fn frames_of_one_poll_are_one_write() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut corked = corked(usize::MAX);
        let mut turn = |corked: &mut Corked<Socket>, frames: usize| {
            read(corked, &mut cx);
            for _ in 0..frames {
                let slices = [IoSlice::new(b"head"), IoSlice::new(b"body")];
                let written = Pin::new(&mut *corked).poll_write_vectored(&mut cx, &slices);
                assert!(matches!(written, Poll::Ready(Ok(8))));
                assert!(Pin::new(&mut *corked).poll_flush(&mut cx).is_ready());
            }
            std::mem::take(&mut corked.socket.writes)
        };
        // One at a time goes out at once, and so does what comes together for the first time.
        assert_eq!(turn(&mut corked, 1), [b"headbody".to_vec()]);
        assert_eq!(turn(&mut corked, 3).len(), 3);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        assert!(turn(&mut corked, 3).is_empty());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(turn(&mut corked, 0), [b"headbodyheadbodyheadbody".to_vec()]);
        assert!(turn(&mut corked, 0).is_empty());
        // Until it was alone for long enough.
        for _ in 0..LONELY_WRITES {
            assert!(turn(&mut corked, 1).is_empty());
            assert_eq!(turn(&mut corked, 0), [b"headbody".to_vec()]);
        }
        assert_eq!(turn(&mut corked, 1), [b"headbody".to_vec()]);
    }

    #[test]
    fn a_full_socket_holds_up_the_writer_and_loses_nothing() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut corked = corked(10);
        let mut taken = 0;
        let bytes = vec![7; 1_000];
        while let Poll::Ready(Ok(part)) = Pin::new(&mut corked).poll_write(&mut cx, &bytes) {
            taken += part;
        }
        assert_eq!(taken, CORKED_BYTES);
        assert_eq!(corked.socket.writes.concat().len(), 10);
        corked.socket.takes = usize::MAX;
        read(&mut corked, &mut cx);
        assert_eq!(corked.socket.writes.concat(), vec![7; taken]);
    }

    #[test]
    fn the_end_writes_what_waits() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut corked = corked(usize::MAX);
        assert!(Pin::new(&mut corked).poll_write(&mut cx, b"bye").is_ready());
        assert!(Pin::new(&mut corked).poll_shutdown(&mut cx).is_ready());
        assert_eq!(corked.socket.writes, [b"bye".to_vec()]);
    }
}
