//! The applications of a simulated world: they carry plans out, and act on events only.
//!
//! Owns what a driver and its users would do. It must never read or write unless an event or its own clock says so: that
//! is what shows a missing event. Look next at `mod.rs` for the world around them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::World;
use super::plan::{Handling, Plan, item};
use crate::proto::tests::support::*;
use crate::proto::{Event, Failure, Open, OpenError, Read, SendError, SendState};
use crate::status::{Code, Status};
use crate::wire::{Refusal, StreamId, parse_prefix};

/// One direction of a call at its sender.
pub(super) struct Writer {
    pub(super) items: VecDeque<Vec<u8>>,
    /// Instead of an end.
    pub(super) abort: bool,
}

/// One direction of a call at its receiver.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) body: Vec<u8>,
    pub(super) release: usize,
    /// Reads again at this time.
    pub(super) pause: Option<Instant>,
    pub(super) done: bool,
}

/// A call at the client.
pub(super) struct Calling {
    pub(super) plan: usize,
    pub(super) writer: Option<Writer>,
    pub(super) reader: Reader,
    pub(super) cancel: Option<Instant>,
}

/// A call at the server.
pub(super) struct Handled {
    pub(super) plan: usize,
    pub(super) writer: Option<Writer>,
    pub(super) reader: Reader,
    /// Answers at this time.
    pub(super) act: Option<Instant>,
    pub(super) acted: bool,
}

impl World {
    pub(super) fn start_calls(&mut self) -> bool {
        let mut moved = false;
        while let Some(&plan) = self.waiting.front() {
            let now = self.now;
            let Plan { deadline, idle, cancel, upload, abort, .. } = self.plans[plan].clone();
            let end = upload.is_empty() && !abort;
            let method = format!("method{}", plan % 5);
            let head = Open { deadline: deadline.map(|time| now + time), idle, end, ..call(&method) };
            let first = [&plan.to_be_bytes()[..], &item(plan, 0, plan % 3 * 3000)].concat();
            match self.client.open(head, now, put(&first)) {
                Ok(id) => {
                    let items = upload.iter().enumerate().map(|(n, len)| item(plan, n + 1, *len)).collect();
                    let writer = (!end).then_some(Writer { items, abort });
                    let cancel = cancel.map(|time| now + time);
                    self.calls.insert(id, Calling { plan, writer, reader: Reader::default(), cancel });
                    self.write(true, id);
                }
                Err(OpenError::Full) => break,
                Err(OpenError::Draining | OpenError::Closed) => self.outcomes[plan] = Some("not opened".into()),
                Err(error) => panic!("{error:?}"),
            }
            self.waiting.pop_front();
            self.note(plan);
            moved = true;
        }
        moved
    }

    /// What the applications do because time has come.
    pub(super) fn clocks(&mut self) -> bool {
        let now = self.now;
        let due = |time: &mut Option<Instant>| time.take_if(|time| *time <= now).is_some();
        let mut cancels = Vec::new();
        let mut reads = Vec::new();
        let mut acts = Vec::new();
        for (id, call) in &mut self.calls {
            if due(&mut call.cancel) {
                cancels.push(*id);
            } else if due(&mut call.reader.pause) {
                reads.push((true, *id));
            }
        }
        for (id, call) in &mut self.handled {
            if due(&mut call.reader.pause) {
                reads.push((false, *id));
            }
            if due(&mut call.act) {
                acts.push(*id);
            }
        }
        let moved = !(cancels.is_empty() && reads.is_empty() && acts.is_empty());
        for id in cancels {
            self.client.cancel(id);
            let Some(call) = self.calls.remove(&id) else { continue };
            self.outcomes[call.plan] = Some("cancelled".into());
            self.note("cancelled");
        }
        for (client, id) in reads {
            self.read(client, id);
        }
        for id in acts {
            self.act(id);
        }
        moved
    }

    pub(super) fn events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            self.note(format!("{event:?}").replace(&format!("{:?}", self.start), ""));
            match event {
                Event::Readable(id) => self.read(true, id),
                Event::Writable(id) => self.write(true, id),
                _ => (),
            }
        }
        while let Some(event) = self.server.poll_event() {
            self.note(match &event {
                Event::Call { id, .. } => format!("call {id:?}"),
                other => format!("{other:?}"),
            });
            match event {
                Event::Call { id, method, .. } => {
                    if let Some(name) = method.name {
                        assert!(self.names.insert(method.number, name.to_string()).is_none(), "told once");
                    }
                    assert_eq!(self.names[&method.number], **self.server.method_name(method.number).unwrap());
                    let call =
                        Handled { plan: usize::MAX, writer: None, reader: Reader::default(), act: None, acted: false };
                    assert!(self.handled.insert(id, call).is_none());
                    self.read(false, id);
                }
                Event::Readable(id) => self.read(false, id),
                Event::Writable(id) => self.write(false, id),
                Event::Cancelled(id) => {
                    self.handled.remove(&id);
                }
                Event::Expired(id) => {
                    self.server.fail(id, &wire_status(Code::DeadlineExceeded, "expired"));
                    self.handled.remove(&id);
                }
                _ => (),
            }
        }
    }

    fn read(&mut self, client: bool, id: StreamId) {
        loop {
            let (machine, reader, dawdles) = if client {
                let Some(call) = self.calls.get_mut(&id) else { return };
                (&mut self.client, &mut call.reader, self.plans[call.plan].dawdles)
            } else {
                let Some(call) = self.handled.get_mut(&id) else { return };
                let dawdles = self.plans.get(call.plan).map_or(Duration::ZERO, |plan| plan.dawdles);
                (&mut self.server, &mut call.reader, dawdles)
            };
            if reader.done || reader.pause.is_some() {
                return;
            }
            let read = machine.read(id, std::mem::take(&mut reader.release));
            let mut end = None;
            match read {
                Read::Pending => return,
                Read::Chunk { bytes, last } => {
                    reader.body.extend_from_slice(&bytes);
                    reader.release = bytes.len();
                    if last {
                        end = Some(Ok(()));
                    } else if !dawdles.is_zero() {
                        reader.pause = Some(self.now + dawdles);
                    }
                }
                Read::End => end = Some(Ok(())),
                Read::Failed(failure) => end = Some(Err(failure)),
            }
            reader.done = end.is_some();
            if client {
                if let Some(end) = end {
                    self.ended(id, end);
                    return;
                }
            } else {
                self.heard(id, end);
            }
        }
    }

    /// The server has read some of a request.
    fn heard(&mut self, id: StreamId, end: Option<Result<(), Failure>>) {
        let Some(call) = self.handled.get_mut(&id) else { return };
        if call.plan == usize::MAX {
            // The first message says which call this is; it comes in one piece or not at all.
            let Some((len, prefix)) = parse_prefix(&call.reader.body) else { return };
            let Some(first) = call.reader.body.get(prefix..prefix + len.min(8)).filter(|first| first.len() == 8) else {
                return;
            };
            call.plan = usize::from_be_bytes(first.try_into().unwrap());
            let plan = &self.plans[call.plan];
            if plan.handling != Handling::Unary {
                call.act = Some(self.now + plan.thinks);
            }
            assert!(self.ran.insert(call.plan), "a call runs once");
        }
        let Some(end) = end else { return };
        let plan = &self.plans[call.plan];
        match end {
            Ok(()) => {
                let got = messages(&call.reader.body);
                assert_eq!(got[0][8..], item(call.plan, 0, call.plan % 3 * 3000));
                let lens: Vec<usize> = got[1..].iter().map(Vec::len).collect();
                assert_eq!(lens, plan.upload);
                assert!(got[1..].iter().enumerate().all(|(n, got)| *got == item(call.plan, n + 1, got.len())));
                assert!(!plan.abort);
            }
            Err(Failure::Status { status, .. }) => assert!(plan.abort && status.code == Code::Aborted.number()),
            // The stream is gone; the event that says so is on its way.
            Err(Failure::Truncated) => return,
            Err(other) => panic!("{other:?}"),
        }
        if plan.handling == Handling::Unary {
            call.act = Some(self.now + plan.thinks);
        }
    }

    /// The server does what it was asked for.
    fn act(&mut self, id: StreamId) {
        let Some(call) = self.handled.get_mut(&id) else { return };
        assert!(!std::mem::replace(&mut call.acted, true));
        let number = call.plan;
        let plan = &self.plans[number];
        let items: VecDeque<Vec<u8>> = plan.download.iter().enumerate().map(|(n, len)| item(number, n, *len)).collect();
        match plan.handling {
            Handling::Unary | Handling::Early => {
                let answered = self.server.answer(id, None, put(&items[0]));
                // Unless the stream is gone; the event that says so is on its way.
                assert!(matches!(answered, Ok(()) | Err(SendError::Over)));
                self.handled.remove(&id);
            }
            Handling::Refuse => {
                self.server.refuse(id, Refusal::Busy, None, "as planned");
                self.handled.remove(&id);
            }
            Handling::Silent => (),
            Handling::Stream | Handling::Fail => {
                self.server.start_answer(id, None);
                call.writer = Some(Writer { items, abort: plan.handling == Handling::Fail });
                self.write(false, id);
            }
        }
    }

    fn write(&mut self, client: bool, id: StreamId) {
        let (machine, writer) = if client {
            let Some(call) = self.calls.get_mut(&id) else { return };
            (&mut self.client, &mut call.writer)
        } else {
            let Some(call) = self.handled.get_mut(&id) else { return };
            (&mut self.server, &mut call.writer)
        };
        let Some(Writer { items, abort }) = writer else { return };
        while let Some(item) = items.pop_front() {
            let sent = if item.len() % 2 == 0 {
                machine.message(id, &item).map_err(|error| format!("{error:?}"))
            } else {
                machine.parts(id, &item[..1], Bytes::copy_from_slice(&item[1..])).map_err(|e| format!("{e:?}"))
            };
            match sent {
                Ok(SendState::More) => (),
                Ok(SendState::Full) => return,
                Err(error) => {
                    assert_eq!(error, "Over");
                    *writer = None;
                    return;
                }
            }
        }
        match (client, *abort) {
            (_, false) => machine.finish(id),
            (true, true) => machine.abort_body(id, &Status::aborted("as planned")),
            (false, true) => machine.fail(id, &wire_status(Code::Internal, "as planned")),
        }
        *writer = None;
        if !client {
            self.handled.remove(&id);
        }
    }

    /// The client knows how its call ended.
    fn ended(&mut self, id: StreamId, end: Result<(), Failure>) {
        let Some(call) = self.calls.remove(&id) else { return };
        let plan = &self.plans[call.plan];
        let whole: Vec<u8> = {
            let mut whole = BytesMut::new();
            for (n, len) in plan.download.iter().enumerate() {
                crate::wire::put_prefix(&mut whole, *len);
                whole.extend_from_slice(&item(call.plan, n, *len));
            }
            whole.to_vec()
        };
        assert!(whole.starts_with(&call.reader.body), "what came is what was sent");
        let outcome = match end {
            Ok(()) => {
                assert_eq!(call.reader.body.len(), whole.len(), "an end is never too early");
                assert!(matches!(plan.handling, Handling::Unary | Handling::Early | Handling::Stream));
                "done".to_owned()
            }
            Err(Failure::Status { status, .. }) => {
                let expired = status.code == Code::DeadlineExceeded.number();
                assert!(expired || (plan.handling == Handling::Fail && call.reader.body.len() == whole.len()));
                "status".to_owned()
            }
            Err(Failure::Refused { .. }) => {
                assert_eq!(plan.handling, Handling::Refuse);
                "refused".to_owned()
            }
            Err(Failure::NotAccepted) => "never: not accepted".to_owned(),
            Err(Failure::Lost { sent, .. }) => {
                assert!(self.lost);
                if sent { "lost".to_owned() } else { "never: lost".to_owned() }
            }
            Err(Failure::Deadline { sent, .. }) => {
                assert!(plan.deadline.is_some());
                if sent { "deadline".to_owned() } else { "never: deadline".to_owned() }
            }
            Err(Failure::Idle { sent, .. }) => {
                assert!(plan.idle.is_some());
                if sent { "idle".to_owned() } else { "never: idle".to_owned() }
            }
            Err(Failure::Truncated) => panic!("a call cannot just be gone"),
        };
        self.outcomes[call.plan] = Some(outcome.clone());
        self.note(outcome);
    }
}
