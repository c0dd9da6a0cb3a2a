//! The server: one task for each connection reads, handles and answers.
//!
//! Must never wait inside a handler. Next: `sources` for streams down, `outbox` for the order of what is sent.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

use super::frame::{Key, Kind, number};
use super::inbox::Inbox;
use super::outbox::{Outbox, SLICES, Sending};
use super::sources::Source;
use super::{WINDOW, WINDOW_UP};
use crate::peer::Feed;

pub(crate) async fn serve(listener: TcpListener) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a non-blocking listener");
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("an open connection");
        let mut connection = Connection::new(stream);
        tokio::spawn(async move { poll_fn(|cx| connection.poll(cx)).await });
    }
}

struct Connection {
    stream: TcpStream,
    inbox: Inbox,
    out: Outbox,
    sending: Sending,
    downs: VecDeque<Down>,
    ups: Vec<Up>,
    /// Bodies of which the end has not come.
    bodies: Vec<(Key, Vec<Bytes>)>,
}

struct Down {
    key: Key,
    credit: i64,
    source: Source,
}

struct Up {
    key: Key,
    items: bool,
    total: u64,
    unreturned: usize,
}

impl Down {
    fn new(key: Key, source: Source) -> Self {
        Self { key, credit: WINDOW as i64, source }
    }
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            inbox: Inbox::new(),
            out: Outbox::default(),
            sending: Sending::default(),
            downs: VecDeque::new(),
            ups: Vec::new(),
            bodies: Vec::new(),
        }
    }

    /// Goes on until nothing moves; ends with the connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut moved = false;
            match pin!(self.stream.read_buf(self.inbox.room())).poll(cx) {
                Poll::Ready(Ok(1..)) => {
                    self.inbox.filled();
                    self.handle();
                    moved = true;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            self.pump(cx);
            match self.write(cx) {
                Ok(wrote) if wrote || moved => {}
                Ok(_) => return Poll::Pending,
                Err(_) => return Poll::Ready(()),
            }
        }
    }

    fn handle(&mut self) {
        while let Some((head, body)) = self.inbox.frame() {
            let key = head.key;
            match head.kind {
                Kind::Add => {
                    let body = body.look();
                    let sum = number(body).wrapping_add(number(&body[8..]));
                    self.out.small(Kind::Number, key, &sum.to_le_bytes());
                }
                Kind::EchoPart => {
                    let part = body.take();
                    match self.bodies.iter_mut().find(|(other, _)| *other == key) {
                        Some((_, parts)) => parts.push(part),
                        None => self.bodies.push((key, vec![part])),
                    }
                }
                Kind::EchoEnd => {
                    let end = body.take();
                    match self.bodies.iter().position(|(other, _)| *other == key) {
                        Some(at) => {
                            for part in self.bodies.swap_remove(at).1 {
                                self.out.bulk(Kind::BodyPart, key, part);
                            }
                            self.out.bulk(Kind::BodyEnd, key, end);
                        }
                        None => self.out.message(Kind::BodyPart, Kind::BodyEnd, key, end),
                    }
                }
                Kind::Items => self.downs.push_back(Down::new(key, Source::items(number(body.look()), Feed::Ready))),
                Kind::ItemsSent => self.downs.push_back(Down::new(key, Source::items(number(body.look()), Feed::Sent))),
                Kind::Chunks => {
                    let body = body.look();
                    self.downs.push_back(Down::new(key, Source::chunks(number(body), number(&body[8..]) as usize)));
                }
                Kind::Sum | Kind::Size => {
                    body.look();
                    self.ups.push(Up { key, items: head.kind == Kind::Sum, total: 0, unreturned: 0 });
                }
                Kind::Data => {
                    let body = body.look();
                    let up = self.ups.iter_mut().find(|up| up.key == key).expect("an open stream");
                    match up.items {
                        true => {
                            let mut rest = body;
                            while let [len, item @ ..] = rest {
                                let (item, after) = item.split_at(usize::from(*len));
                                up.total = up.total.wrapping_add(number(item));
                                rest = after;
                            }
                        }
                        false => up.total += body.len() as u64,
                    }
                    up.unreturned += body.len();
                    if up.unreturned >= WINDOW_UP / 2 {
                        self.out.small(Kind::Credit, key, &(up.unreturned as u64).to_le_bytes());
                        up.unreturned = 0;
                    }
                }
                Kind::End => {
                    body.look();
                    let at = self.ups.iter().position(|up| up.key == key).expect("an open stream");
                    let up = self.ups.swap_remove(at);
                    self.out.small(Kind::Number, key, &up.total.to_le_bytes());
                }
                Kind::Credit => {
                    let credit = number(body.look()) as i64;
                    if let Some(down) = self.downs.iter_mut().find(|down| down.key == key) {
                        down.credit += credit;
                    }
                }
                Kind::Number | Kind::BodyPart | Kind::BodyEnd => unreachable!("a client sends no answers"),
            }
        }
    }

    /// Lets the streams fill the outbox in turns.
    fn pump(&mut self, cx: &mut Context<'_>) {
        let mut idle = 0;
        while idle < self.downs.len() && !self.out.is_full() {
            let Some(mut down) = self.downs.pop_front() else { break };
            // Items are not cut, so that their last frame may be longer than what is left.
            let next = if down.credit <= 0 { Poll::Pending } else { down.source.poll(cx, down.credit) };
            match next {
                Poll::Ready(Some(bytes)) => {
                    down.credit -= bytes.len() as i64;
                    self.out.bulk(Kind::Data, down.key, bytes);
                    self.downs.push_back(down);
                    idle = 0;
                }
                Poll::Ready(None) => self.out.bulk(Kind::End, down.key, Bytes::new()),
                Poll::Pending => {
                    self.downs.push_back(down);
                    idle += 1;
                }
            }
        }
    }

    /// Writes what is there as far as the socket takes it; whether anything was written.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.sending.is_empty() {
            self.sending.load(&mut self.out);
        }
        let mut wrote = false;
        while !self.sending.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.sending.slices(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(bytes) => self.sending.advance(bytes?),
                Poll::Pending => break,
            }
            wrote = true;
        }
        Ok(wrote)
    }
}
