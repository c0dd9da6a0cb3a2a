//! A peer that is not picom: it speaks the protocol from the document alone, or whatever else a script says.
//!
//! Owns bytes, frames and just enough MessagePack for a hello. It must never use picom's own encoder, or both could be
//! wrong alike. Look next at `proxy.rs` for faults between two real nodes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::PATIENCE;

pub(crate) const PREFACE: &[u8] = b"picom/1\r\n\r\n";

pub(crate) const HELLO: u8 = 0x01;
pub(crate) const PING: u8 = 0x02;
pub(crate) const PONG: u8 = 0x03;
pub(crate) const CREDIT: u8 = 0x04;
pub(crate) const DRAIN: u8 = 0x05;
pub(crate) const CLOSE: u8 = 0x06;
pub(crate) const CALL: u8 = 0x08;
pub(crate) const DATA: u8 = 0x09;
pub(crate) const ANSWER: u8 = 0x0a;
pub(crate) const STATUS: u8 = 0x0b;
pub(crate) const CANCEL: u8 = 0x0c;
pub(crate) const REFUSED: u8 = 0x0d;

pub(crate) const END: u8 = 0x80;
pub(crate) const NAME: u8 = 0x40;
pub(crate) const META: u8 = 0x20;

/// Why a connection was closed, as in section 10.
pub(crate) mod reason {
    pub(crate) const PROTOCOL: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const WRONG_SERVICE: u8 = 3;
    pub(crate) const WRONG_INCARNATION: u8 = 4;
    pub(crate) const FLOW_CONTROL: u8 = 5;
    pub(crate) const BUSY: u8 = 6;
    pub(crate) const TOO_MANY_CANCELS: u8 = 7;
    pub(crate) const TOO_MANY_CONTROL: u8 = 8;
    pub(crate) const SHUTTING_DOWN: u8 = 9;
    pub(crate) const HANDSHAKE: u8 = 10;
}

/// The first stream that a client opens.
pub(crate) const FIRST: u32 = 1 << 16;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The bytes of a frame; nothing is checked.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.push(kind | flags);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A message of a body: its prefix and its bytes.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    let mut message = match u8::try_from(bytes.len()) {
        Ok(len) if len < 255 => vec![len],
        _ => [&[255][..], &(bytes.len() as u32).to_be_bytes()].concat(),
    };
    message.extend(bytes);
    message
}

/// A MessagePack text of up to 255 bytes.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&[0xd9, u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat()
}

/// A MessagePack number.
pub(crate) fn number(number: u64) -> Vec<u8> {
    [&[0xcf][..], &number.to_be_bytes()].concat()
}

/// A MessagePack map with texts for keys.
pub(crate) fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut map = vec![0x80 | u8::try_from(entries.len()).unwrap()];
    for (key, value) in entries {
        map.extend(text(key));
        map.extend(value);
    }
    map
}

/// What a peer says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) service: String,
    pub(crate) incarnation: u64,
    pub(crate) expect: Option<u64>,
    pub(crate) max_calls: u64,
    pub(crate) stream_window: u64,
    pub(crate) connection_window: u64,
    pub(crate) max_message: u64,
    pub(crate) idempotent: Vec<String>,
}

impl Hello {
    pub(crate) fn client(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            incarnation: 7,
            expect: None,
            max_calls: 0,
            stream_window: 256 << 10,
            connection_window: 8 << 20,
            max_message: 4 << 20,
            idempotent: Vec::new(),
        }
    }

    pub(crate) fn server(service: &str) -> Self {
        Self { max_calls: 100, ..Self::client(service) }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut entries = vec![
            ("node", text("scripted")),
            ("service", text(&self.service)),
            ("incarnation", number(self.incarnation)),
            ("max_calls", number(self.max_calls)),
            ("stream_window", number(self.stream_window)),
            ("connection_window", number(self.connection_window)),
            ("max_message", number(self.max_message)),
        ];
        if let Some(expect) = self.expect {
            entries.push(("expect", number(expect)));
        }
        if !self.idempotent.is_empty() {
            let mut names = vec![0x90 | u8::try_from(self.idempotent.len()).unwrap()];
            self.idempotent.iter().for_each(|name| names.extend(text(name)));
            entries.push(("idempotent", names));
        }
        [PREFACE, &frame(HELLO, 0, 0, &map(&entries))].concat()
    }
}

/// A CALL with a method's name, without a number for it.
pub(crate) fn call(stream: u32, flags: u8, method: &str, body: &[u8]) -> Vec<u8> {
    let head = [&[0, 0, method.len() as u8][..], method.as_bytes(), &[0, 0, 0, 0, 0]].concat();
    frame(CALL, flags | NAME, stream, &[&head, body].concat())
}

/// A unary CALL with nil for arguments.
pub(crate) fn unary(stream: u32, method: &str) -> Vec<u8> {
    call(stream, END, method, &message(&[0xc0]))
}

/// One end of a connection.
pub(crate) struct Peer {
    pub(crate) socket: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    pub(crate) fn new(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        Self { socket, buffer: Vec::new() }
    }

    /// Connects and says nothing.
    pub(crate) async fn silent(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).await.unwrap())
    }

    /// Connects and shakes hands.
    pub(crate) async fn connect(addr: SocketAddr, hello: &Hello) -> Self {
        let mut peer = Self::silent(addr).await;
        peer.send(&hello.bytes()).await;
        peer.expect_preface().await;
        let answer = peer.frame().await.expect("a HELLO");
        assert_eq!(answer.kind, HELLO, "the server answered hello with {answer:?}");
        peer
    }

    /// Sends bytes as they are; a peer that is gone is noticed when reading.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }

    /// Reads the preface.
    pub(crate) async fn expect_preface(&mut self) {
        assert!(self.fill(PREFACE.len()).await, "the connection closed before the preface");
        let preface: Vec<u8> = self.buffer.drain(..PREFACE.len()).collect();
        assert_eq!(preface, PREFACE);
    }

    /// The next frame; `None` when the connection is closed.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        if !self.fill(8).await {
            return None;
        }
        let len = usize::from(self.buffer[0]) << 16 | usize::from(self.buffer[1]) << 8 | usize::from(self.buffer[2]);
        if !self.fill(8 + len).await {
            return None;
        }
        let bytes: Vec<u8> = self.buffer.drain(..8 + len).collect();
        let stream = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        Some(Frame { kind: bytes[3] & 0x1f, flags: bytes[3] & 0xe0, stream, payload: bytes[8..].to_vec() })
    }

    /// The next frame of this kind; others are skipped.
    pub(crate) async fn next(&mut self, kind: u8) -> Frame {
        let mut skipped = Vec::new();
        loop {
            match self.frame().await {
                Some(frame) if frame.kind == kind => return frame,
                Some(frame) => skipped.push(frame.kind),
                None => panic!("the connection closed instead of a frame of kind {kind:#04x}, after {skipped:02x?}"),
            }
        }
    }

    /// The reason and the text with which the connection is closed; the end of the connection must follow.
    pub(crate) async fn closed(&mut self) -> (u8, String) {
        let close = self.next(CLOSE).await;
        let after = self.frame().await;
        assert_eq!(after, None, "CLOSE is the last frame of its sender");
        (close.payload[0], String::from_utf8(close.payload[1..].to_vec()).unwrap())
    }

    /// Everything until the end of the connection, as it comes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill(self.buffer.len() + 1).await {}
        std::mem::take(&mut self.buffer)
    }

    /// Reads until so many bytes are there; false at the end of the connection.
    async fn fill(&mut self, len: usize) -> bool {
        while self.buffer.len() < len {
            let mut chunk = [0; 16 << 10];
            match timeout(PATIENCE, self.socket.read(&mut chunk)).await {
                Err(_) => panic!("nothing came for {PATIENCE:?}, after {} bytes", self.buffer.len()),
                Ok(Ok(0)) => return false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return false,
                Ok(Err(error)) => panic!("reading failed: {error}"),
                Ok(Ok(n)) => self.buffer.extend(&chunk[..n]),
            }
        }
        true
    }

    // ---- as a server

    /// Reads the client's preface and HELLO and answers with `hello`.
    pub(crate) async fn greet(&mut self, hello: &Hello) {
        self.expect_preface().await;
        assert_eq!(self.frame().await.map(|frame| frame.kind), Some(HELLO), "a client begins with HELLO");
        self.send(&hello.bytes()).await;
    }

    /// Answers a call with one message.
    pub(crate) async fn answer(&mut self, stream: u32, value: &[u8]) {
        self.send(&frame(ANSWER, END, stream, &message(value))).await;
    }

    /// Refuses a call.
    pub(crate) async fn refuse(&mut self, stream: u32, reason: u8, retry_after: u32, text: &str) {
        let payload = [&[reason][..], &retry_after.to_be_bytes(), text.as_bytes()].concat();
        self.send(&frame(REFUSED, 0, stream, &payload)).await;
    }
}

/// A server that does what a script says with each connection.
pub(crate) struct Scripted {
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Scripted {
    /// Listens; `script` gets each connection and its number, from 0.
    pub(crate) async fn start<F>(script: impl Fn(Peer, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(script(Peer::new(socket), count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { addr, accepted, task }
    }

    /// How many connections there have been.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Keeps a connection open and does nothing with it.
pub(crate) async fn idle(peer: Peer) {
    tokio::time::sleep(Duration::from_secs(3600)).await;
    drop(peer);
}
