//! Two machines and the bytes between them.
//!
//! Owns [`Pair`], which moves bytes at once and keeps the events of both sides, and what tests say often. It must never
//! hide an error: a machine that fails when none is expected fails the test.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use crate::proto::{Batch, Config, Connection, Error, Event, Failure, Gauge, Open, Over, Read, SendState, Side};
use crate::status::{Code, Status};
use crate::wire::{Apart, Frame, FrameCodec, PREFACE, StreamId, WireStatus, parse_prefix, put_prefix};
use tokio_util::codec::Decoder;

pub(super) type Nothing = std::convert::Infallible;

pub(super) fn client_config() -> Config {
    Config {
        node: "caller".into(),
        service: "calculator".into(),
        incarnation: 0x0102_0304_0506_0708,
        ..Config::new(Side::Client)
    }
}

pub(super) fn server_config() -> Config {
    Config {
        node: "host".into(),
        service: "calculator".into(),
        incarnation: 0x1112_1314_1516_1718,
        ..Config::new(Side::Server)
    }
}

/// A server that says how busy it is to those who ask.
pub(super) fn loaded(server: Config) -> Config {
    Config { gauge: Some(Arc::new(Gauge::new(100))), ..server }
}

/// Two connections joined at the hip.
pub(super) struct Pair {
    pub(super) client: Connection,
    pub(super) server: Connection,
    pub(super) now: Instant,
    pub(super) client_events: VecDeque<Event>,
    pub(super) server_events: VecDeque<Event>,
    /// Everything that went either way.
    pub(super) sent: (Vec<u8>, Vec<u8>),
}

impl Pair {
    /// Two connections with the handshake done.
    pub(super) fn ready() -> Self {
        Self::with(client_config(), server_config())
    }

    pub(super) fn with(client: Config, server: Config) -> Self {
        let mut pair = Self::fresh(client, server);
        pair.run();
        assert_eq!(pair.client_events.pop_front(), Some(Event::Ready));
        assert_eq!(pair.server_events.pop_front(), Some(Event::Ready));
        pair.sent = Default::default();
        pair
    }

    pub(super) fn fresh(client: Config, server: Config) -> Self {
        let now = Instant::now();
        Self {
            client: Connection::new(Arc::new(client), now),
            server: Connection::new(Arc::new(server), now),
            now,
            client_events: VecDeque::new(),
            server_events: VecDeque::new(),
            sent: Default::default(),
        }
    }

    /// Moves bytes until both rest.
    pub(super) fn run(&mut self) {
        while self.client.wants_transmit() || self.server.wants_transmit() {
            self.reach_server().unwrap();
            self.reach_client().unwrap();
        }
        self.collect();
    }

    /// Moves what the client has for one batch.
    pub(super) fn reach_server(&mut self) -> Result<(), Error> {
        let bytes = transmit(&mut self.client);
        self.sent.0.extend_from_slice(&bytes);
        let result = self.server.receive(&mut BytesMut::from(&bytes[..]), self.now);
        self.collect();
        result
    }

    /// Moves what the server has for one batch.
    pub(super) fn reach_client(&mut self) -> Result<(), Error> {
        let bytes = transmit(&mut self.server);
        self.sent.1.extend_from_slice(&bytes);
        let result = self.client.receive(&mut BytesMut::from(&bytes[..]), self.now);
        self.collect();
        result
    }

    pub(super) fn collect(&mut self) {
        self.client_events.extend(std::iter::from_fn(|| self.client.poll_event()));
        self.server_events.extend(std::iter::from_fn(|| self.server.poll_event()));
    }

    /// Opens a call with one message.
    pub(super) fn open(&mut self, method: &str, message: &[u8], end: bool) -> StreamId {
        self.open_with(Open { end, ..call(method) }, message)
    }

    pub(super) fn open_with(&mut self, head: Open<'_>, message: &[u8]) -> StreamId {
        self.client.open(head, self.now, put(message)).unwrap()
    }

    /// Opens a call and moves it to the server.
    pub(super) fn call(&mut self, method: &str, message: &[u8], end: bool) -> StreamId {
        let id = self.open(method, message, end);
        self.run();
        match self.server_events.pop_front() {
            Some(Event::Call { id: came, .. }) if came == id => id,
            other => panic!("no call but {other:?}"),
        }
    }

    pub(super) fn advance(&mut self, time: Duration) {
        self.now += time;
    }

    /// Asserts that nothing is left: no stream, no held credit on either side.
    pub(super) fn assert_clean(&self) {
        for (side, other) in [(&self.client, &self.server), (&self.server, &self.client)] {
            assert_eq!(side.open_calls(), 0);
            assert!(side.window.is_whole(), "{:?}", side.window);
            let (_, left, _) = side.window.parts();
            assert_eq!(other.credit.get(), left as usize, "what one has left the other may send");
            assert!(side.turns.is_empty());
        }
    }
}

impl Connection {
    /// What is left open, whether all credit of the peer is accounted for, how much of it is left, and how much there is here.
    pub(crate) fn accounts(&self) -> (usize, bool, usize, usize) {
        (self.open_calls(), self.window.is_whole(), self.window.parts().1 as usize, self.credit.get())
    }

    /// Asserts that what has grown is what was counted, and within its bound.
    pub(super) fn check_growth(&mut self) {
        let (bound, grown, _) = self.growth.parts();
        let first = self.receive_window();
        let mut sum = 0;
        for (_, stream) in self.streams.iter_mut() {
            let Some(body) = &stream.body else { continue };
            let (size, left, gathered) = body.incoming.window.parts();
            assert!(left + gathered <= size && size <= first.max(bound), "{left} and {gathered} of {size}");
            sum += size - first;
        }
        assert!(sum == grown && grown <= bound, "{grown} and not {sum} of {bound}");
    }
}

/// A call without extras and without a request body.
pub(super) fn call(method: &str) -> Open<'_> {
    Open { method, deadline: None, idle: None, attempt: 0, metadata: None, end: true }
}

/// A closure that encodes a message.
pub(super) fn put(message: &[u8]) -> impl FnOnce(&mut BytesMut) -> Result<Apart, Nothing> {
    |target| {
        target.put_slice(message);
        Ok(Apart::new())
    }
}

/// Everything of one batch, as one piece.
pub(super) fn transmit(connection: &mut Connection) -> Bytes {
    let mut batch = Batch::default();
    connection.transmit(&mut batch);
    let bytes = drain(&mut batch);
    if !bytes.is_empty() {
        connection.wrote();
    }
    bytes
}

/// Takes a batch apart.
pub(super) fn drain(batch: &mut Batch) -> Bytes {
    let mut bytes = BytesMut::new();
    while !batch.is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 16];
        let filled = batch.slices(&mut slices);
        let before = bytes.len();
        for slice in &slices[..filled] {
            bytes.put_slice(slice);
        }
        let count = bytes.len() - before;
        assert!(count > 0);
        batch.advance(count);
    }
    bytes.freeze()
}

/// The frames among bytes, without a preface.
pub(super) fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut bytes = BytesMut::from(bytes.strip_prefix(PREFACE).unwrap_or(bytes));
    let frames = std::iter::from_fn(|| FrameCodec.decode(&mut bytes).unwrap()).collect();
    assert!(bytes.is_empty());
    frames
}

/// How a body ended.
#[derive(Debug, PartialEq)]
pub(super) enum Rest {
    Pending,
    End,
    Failed(Failure),
}

/// Reads everything that is there, releasing it at once.
pub(super) fn read_all(connection: &mut Connection, id: StreamId) -> (Vec<u8>, Rest) {
    let mut body = Vec::new();
    let mut release = 0;
    loop {
        match connection.read(id, release) {
            Read::Chunk { bytes, last } => {
                body.extend_from_slice(&bytes);
                release = bytes.len();
                if last {
                    return (body, Rest::End);
                }
            }
            Read::Pending => return (body, Rest::Pending),
            Read::End => return (body, Rest::End),
            Read::Failed(failure) => return (body, Rest::Failed(failure)),
        }
    }
}

/// The messages of a body that has only whole ones.
pub(super) fn messages(mut body: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let (len, prefix) = parse_prefix(body).expect("a whole prefix");
        messages.push(body[prefix..prefix + len].to_vec());
        body = &body[prefix + len..];
    }
    messages
}

/// Reads a body that has ended into messages.
pub(super) fn read_messages(connection: &mut Connection, id: StreamId) -> Vec<Vec<u8>> {
    let (body, rest) = read_all(connection, id);
    assert_eq!(rest, Rest::End);
    messages(&body)
}

/// Messages as tests say them: one at a time, encoded here.
pub(super) trait SendMessages {
    fn message(&mut self, id: StreamId, message: &[u8]) -> Result<SendState, Over>;
    /// A message of two parts, the second by reference.
    fn parts(&mut self, id: StreamId, head: &[u8], body: Bytes) -> Result<SendState, Over>;
}

impl SendMessages for Connection {
    fn message(&mut self, id: StreamId, message: &[u8]) -> Result<SendState, Over> {
        self.parts(id, message, Bytes::new())
    }

    fn parts(&mut self, id: StreamId, head: &[u8], body: Bytes) -> Result<SendState, Over> {
        let mut packed = BytesMut::new();
        put_prefix(&mut packed, head.len() + body.len());
        packed.put_slice(head);
        if body.is_empty() { self.send(id, packed.freeze()) } else { self.send_parts(id, packed.freeze(), body) }
    }
}

/// A status of a method that has run.
pub(super) fn wire_status(code: Code, message: &str) -> WireStatus {
    WireStatus::from(&Status::new(code, message))
}
