//! The machine: what comes in and what it does to the streams.
//!
//! Owns [`Connection`]. It must never touch a socket, a task or a clock. Look next at `event.rs` for what it says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{Batch, Config, Error, Event, Open, OpenError, Peer, Read, SendError, SendState};
use crate::metadata::Metadata;
use crate::status::Status;
use crate::wire::{CloseReason, Refusal, StreamId, WireStatus};

/// One connection of either side.
#[derive(Debug)]
pub(crate) struct Connection {}

#[allow(unused_variables, clippy::todo, reason = "signatures first")]
impl Connection {
    pub(crate) fn new(config: Arc<Config>, now: Instant) -> Self {
        todo!()
    }
    /// Who is at the other end, after [`Event::Ready`].
    pub(crate) fn peer(&self) -> Option<&Peer> {
        todo!()
    }
    /// Takes every complete frame off the front of the input. On `Err` a CLOSE may be left to transmit.
    pub(crate) fn receive(&mut self, input: &mut BytesMut, now: Instant) -> Result<(), Error> {
        todo!()
    }
    /// How many more bytes complete what is at the front of the input: a hint for the next read.
    pub(crate) fn wanted(&self, input: &BytesMut) -> usize {
        todo!()
    }
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        todo!()
    }
    /// When [`handle_timeout`](Self::handle_timeout) is next due; may be earlier than necessary, never later.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        todo!()
    }
    /// The I/O is gone: every open stream fails, and further opens too.
    pub(crate) fn lost(&mut self, error: Error) {
        todo!()
    }
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }
    pub(crate) fn wants_transmit(&self) -> bool {
        todo!()
    }
    /// Fills an empty batch: all small frames, then a quantum of bulk. May produce events.
    pub(crate) fn transmit(&mut self, batch: &mut Batch) {
        todo!()
    }
    /// Some byte of the last batch was taken by the kernel.
    pub(crate) fn wrote(&mut self) {
        todo!()
    }
    /// Server: so much waits to be written that nothing more should be received until it is.
    pub(crate) fn is_congested(&self) -> bool {
        todo!()
    }
    pub(crate) fn open<E>(
        &mut self,
        head: Open<'_>,
        now: Instant,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<StreamId, OpenError<E>> {
        todo!()
    }
    pub(crate) fn send<E>(
        &mut self,
        id: StreamId,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<SendState, SendError<E>> {
        todo!()
    }
    pub(crate) fn send_bytes(
        &mut self,
        id: StreamId,
        head: &[u8],
        body: Bytes,
    ) -> Result<SendState, SendError<std::convert::Infallible>> {
        todo!()
    }
    pub(crate) fn is_full(&self, id: StreamId) -> bool {
        todo!()
    }
    pub(crate) fn finish(&mut self, id: StreamId) {
        todo!()
    }
    pub(crate) fn abort_body(&mut self, id: StreamId, status: &Status) {
        todo!()
    }
    pub(crate) fn answer<E>(
        &mut self,
        id: StreamId,
        metadata: Option<&Metadata>,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<(), SendError<E>> {
        todo!()
    }
    pub(crate) fn start_answer(&mut self, id: StreamId, metadata: Option<&Metadata>) {
        todo!()
    }
    pub(crate) fn fail(&mut self, id: StreamId, failure: &WireStatus) {
        todo!()
    }
    pub(crate) fn refuse(&mut self, id: StreamId, reason: Refusal, retry_after: Option<Duration>, text: &str) {
        todo!()
    }
    pub(crate) fn read(&mut self, id: StreamId, release: usize) -> Read {
        todo!()
    }
    pub(crate) fn cancel(&mut self, id: StreamId) {
        todo!()
    }
    pub(crate) fn drain(&mut self) {
        todo!()
    }
    pub(crate) fn close(&mut self, reason: CloseReason, text: &str) {
        todo!()
    }
    pub(crate) fn open_calls(&self) -> usize {
        todo!()
    }
    pub(crate) fn is_draining(&self) -> bool {
        todo!()
    }
    pub(crate) fn is_closed(&self) -> bool {
        todo!()
    }
    /// Client: how many more calls can be opened now.
    pub(crate) fn free_slots(&self) -> usize {
        todo!()
    }
    /// Server: the name that the client gave a number to.
    pub(crate) fn method_name(&self, number: u16) -> Option<&Arc<str>> {
        todo!()
    }
}
