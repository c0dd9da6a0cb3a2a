//! The handshake: prefaces and HELLOs.
//!
//! Owns sections 2 and 4. It must never let anything of a call through before both sides know who the other is. Look next
//! at `wire/preface.rs` for what else may knock, and at `receive.rs`, which asks here first.

use bytes::{Buf, BytesMut};

use super::config::Side;
use super::connection::{Connection, Phase};
use super::credit::Credit;
use super::error::{Error, foreign};
use super::event::{Event, Peer};
use crate::wire::frame::put_frame;
use crate::wire::preface::{Verdict, judge};
use crate::wire::{CloseReason, Flags, Hello, Kind, PREFACE, Speaks, StreamId};

impl Connection {
    /// Queues the own preface and HELLO.
    pub(super) fn greet(&mut self) {
        let config = &self.config;
        let client = config.side == Side::Client;
        let hello = Hello {
            node: config.node.clone(),
            service: config.service.clone(),
            incarnation: config.incarnation,
            expect: config.expect.filter(|_| client),
            max_calls: if client { 0 } else { u32::from(config.max_calls.max(1)) },
            stream_window: self.receive_window(),
            connection_window: self.window.size(),
            max_message: u64::try_from(config.max_message).unwrap_or(u64::MAX),
            idempotent: if client { Vec::new() } else { config.idempotent.clone() },
            load: client && config.wants_load,
        };
        self.prefaced = true;
        self.outbox.put(|bytes| {
            bytes.extend_from_slice(PREFACE);
            put_frame(bytes, Kind::Hello, Flags::NONE, StreamId::CONNECTION, &hello.encode());
        });
    }

    /// Takes the peer's preface off the front; false if it is not all there.
    pub(super) fn receive_preface(&mut self, input: &mut BytesMut) -> Result<bool, Error> {
        match judge(input) {
            Verdict::Unclear => Ok(false),
            Verdict::Picom => {
                input.advance(PREFACE.len());
                self.phase = Phase::Hello;
                Ok(true)
            }
            Verdict::Other(Speaks::OtherVersion) => Err(Error::Version),
            Verdict::Other(speaks) => {
                if !self.is_client() {
                    self.outbox.put(|bytes| bytes.extend_from_slice(speaks.reply()));
                }
                Err(Error::NotPicom { speaks })
            }
        }
    }

    /// Takes the peer's HELLO.
    pub(super) fn receive_hello(&mut self, payload: &[u8]) -> Result<(), Error> {
        if self.phase != Phase::Hello {
            return Err(Error::protocol("a second HELLO"));
        }
        let hello = Hello::decode(payload)
            .map_err(|error| Error::protocol(format!("bad HELLO: {}", foreign(error.as_bytes()))))?;
        if hello.service != self.config.service {
            let (wanted, offered) = if self.is_client() {
                (self.config.service.clone(), foreign(hello.service.as_bytes()))
            } else {
                (foreign(hello.service.as_bytes()), self.config.service.clone())
            };
            return Err(Error::WrongService { wanted, offered });
        }
        let (expected, found) = if self.is_client() {
            if hello.max_calls == 0 {
                return Err(Error::protocol("bad HELLO: max_calls is 0"));
            }
            (self.config.expect, hello.incarnation)
        } else {
            if hello.max_calls != 0 {
                return Err(Error::protocol("bad HELLO: max_calls of a client is not 0"));
            }
            (hello.expect, self.config.incarnation)
        };
        match expected {
            Some(wanted) if wanted != found => return Err(Error::WrongIncarnation { wanted, found }),
            _ => (),
        }
        self.credit = Credit::new(hello.connection_window);
        self.peer = Some(Box::new(Peer {
            node: hello.node,
            service: hello.service,
            incarnation: hello.incarnation,
            // At most 65,535, as `Hello::decode` checks.
            max_calls: u16::try_from(hello.max_calls).unwrap_or(u16::MAX),
            max_message: hello.max_message,
            stream_window: hello.stream_window,
            idempotent: hello.idempotent.into_iter().collect(),
            wants_load: hello.load,
        }));
        if !self.is_client() {
            self.greet();
        }
        self.phase = Phase::Ready;
        self.idle_since = self.now;
        self.events.push_back(Event::Ready);
        if self.is_client() {
            self.offer_slot();
        } else if self.draining {
            self.send_drain();
        }
        Ok(())
    }

    /// The peer was too slow. A client says nothing: until it has the server's HELLO it does not know to whom.
    pub(super) fn handshake_timed_out(&mut self) -> Error {
        if self.is_client() {
            self.phase = Phase::Closed;
        } else {
            self.close(CloseReason::HandshakeTimeout, "the handshake took too long");
        }
        Error::HandshakeTimeout
    }
}
