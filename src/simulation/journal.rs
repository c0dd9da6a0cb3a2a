//! What happened in a world, and what must never have.
//!
//! Owns the log, the record of what ran where, what each client's list says, and the violations. It must never change what
//! happens. Look next at [`super::work`] for the calls that are judged here, and at [`super::flaws`], which shows that they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::net::Pid;
use super::world::PROCESSES;
use crate::registry::{Endpoint, Endpoints, Freshness};
use crate::{Code, Execution, Status};

/// For how long one that the list does not offer any more may still be used.
pub(super) const REMOVED_LIMIT: Duration = Duration::from_secs(1);
/// Second attempts beside the first, in percent of the calls that may have one.
pub(super) const HEDGING_PERCENT: usize = 2;
/// The first number of a call that no client had planned.
const UNPLANNED: CallId = 1_000_000;

/// A call by its number in the world.
pub(super) type CallId = u64;

/// A process, as long as it lives.
pub(super) struct Life {
    pub(super) pid: Pid,
    /// Where it serves; 0 if it does not.
    pub(super) port: u16,
    dead: AtomicBool,
}

impl Life {
    pub(super) fn new(pid: Pid, port: u16) -> Arc<Self> {
        Arc::new(Self { pid, port, dead: AtomicBool::new(false) })
    }

    pub(super) fn ends(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

/// What is known of a call when it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Who calls.
    pub(super) from: Pid,
    pub(super) idempotent: bool,
    /// How much time it has.
    pub(super) limit: Option<Duration>,
    /// How often it may run at most, if it is idempotent.
    pub(super) most: usize,
}

/// The book of one world.
pub(super) struct Journal {
    start: Instant,
    book: Mutex<Book>,
}

#[derive(Default)]
pub(super) struct Book {
    pub(super) log: Vec<String>,
    pub(super) violations: Vec<String>,
    calls: BTreeMap<CallId, Entry>,
    unplanned: u64,
    /// How many calls of each client may have a second attempt beside the first.
    hedged: BTreeMap<Pid, usize>,
    /// Second attempts of all clients, and attempts that were still running when another one was answered.
    second_attempts: usize,
    losers: usize,
    /// Since when an address is not offered to its client any more.
    removed: BTreeMap<SocketAddr, Instant>,
    listed: BTreeMap<(Pid, String), (Vec<SocketAddr>, String)>,
}

struct Entry {
    terms: Terms,
    began: Instant,
    /// The ports of those who ran it.
    ran: Vec<u16>,
    /// How often it ran to its end.
    finished: usize,
    said: Option<Option<Execution>>,
    /// When it was over for its caller.
    over: Option<Instant>,
}

/// A call for which nobody waits any more.
pub(super) struct Over {
    pub(super) caller: Pid,
    pub(super) since: Instant,
    /// It was answered.
    pub(super) is_well: bool,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), book: Mutex::default() }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    pub(super) fn note(&self, what: impl std::fmt::Display) {
        let line = format!("{:>10.3} {what}", self.start.elapsed().as_secs_f64());
        self.book().log.push(line);
    }

    pub(super) fn violation(&self, what: impl std::fmt::Display) {
        self.note(format_args!("VIOLATION: {what}"));
        self.book().violations.push(what.to_string());
    }

    /// A client has another list.
    pub(super) fn listed(&self, client: Pid, service: &str, list: &Endpoints) {
        let now = Instant::now();
        // Of the others it knows, but not as anybody to call.
        let usable: Vec<_> = list.usable().iter().map(|endpoint| endpoint.addr).collect();
        let entry = |endpoint: &Arc<Endpoint>| {
            format!("{} {:?} {}", endpoint.addr.port(), endpoint.tier, endpoint.status.state)
        };
        let entries: Vec<_> = list.endpoints.iter().map(entry).collect();
        let stale = if list.freshness == Freshness::Live { "" } else { ", stale" };
        let shown = format!("{client} lists as {service} {entries:?}{stale}");
        let mut book = self.book();
        let Book { listed, removed, .. } = &mut *book;
        let key = (client, service.to_owned());
        let (before, shown_before) = listed.remove(&key).unwrap_or_default();
        let is_news = shown != shown_before;
        for gone in before.into_iter().filter(|addr| !usable.contains(addr)) {
            removed.insert(gone, now);
        }
        removed.retain(|addr, _| !usable.contains(addr));
        listed.insert(key, (usable, shown.clone()));
        drop(book);
        if is_news {
            self.note(shown);
        }
    }

    /// A client connects.
    pub(super) fn dials(&self, addr: SocketAddr) {
        let gone = self.book().removed.get(&addr).map(Instant::elapsed);
        if let Some(gone) = gone.filter(|gone| *gone > REMOVED_LIMIT) {
            self.violation(format_args!("{addr} is connected to {gone:?} after it left the list"));
        }
    }

    /// The number of a call that nobody has planned.
    pub(super) fn another(&self) -> CallId {
        let mut book = self.book();
        book.unplanned += 1;
        UNPLANNED + book.unplanned
    }

    /// A call begins.
    pub(super) fn began(&self, id: CallId, terms: Terms) {
        let entry = Entry { terms, began: Instant::now(), ran: Vec::new(), finished: 0, said: None, over: None };
        self.book().calls.insert(id, entry);
    }

    /// A handler runs, and has so much time.
    pub(super) fn ran(&self, id: CallId, life: &Life, remaining: Option<Duration>) {
        let port = life.port;
        let mut wrong = Vec::new();
        let mut book = self.book();
        let Book { calls, removed, .. } = &mut *book;
        match calls.get_mut(&id) {
            None => wrong.push(format!("a call {id} runs that nobody made")),
            Some(call) => {
                call.ran.push(port);
                let Terms { from, idempotent, limit, most } = call.terms;
                if !idempotent && call.ran.len() > 1 {
                    wrong.push(format!("call {id} ran twice, at {:?}", call.ran));
                }
                if call.ran.len() > most {
                    wrong.push(format!("call {id} ran more than {most} times, at {:?}", call.ran));
                }
                if call.said == Some(Some(Execution::Never)) {
                    wrong.push(format!("call {id} runs, of which was said that it never did"));
                }
                if limit.is_some_and(|limit| remaining.is_none_or(|remaining| remaining > limit)) {
                    wrong.push(format!("call {id} has {remaining:?}, more than its caller's {limit:?}"));
                }
                let addr = crate::transport::simulated::addr(from, port);
                if let Some(gone) = removed.get(&addr).filter(|gone| call.began > **gone + REMOVED_LIMIT) {
                    wrong.push(format!(
                        "call {id} began {:?} after {port} left the list, and runs there",
                        call.began - *gone
                    ));
                }
            }
        }
        drop(book);
        self.note(format_args!("call {id} runs at {port}"));
        self.lives(life, id);
        wrong.into_iter().for_each(|wrong| self.violation(wrong));
    }

    /// A handler has come to its end, whatever it answers.
    pub(super) fn finished(&self, id: CallId, life: &Life) {
        if let Some(call) = self.book().calls.get_mut(&id) {
            call.finished += 1;
        }
        self.note(format_args!("call {id} is done at {}", life.port));
        self.lives(life, id);
    }

    fn lives(&self, life: &Life, id: CallId) {
        if life.is_over() {
            self.violation(format_args!("call {id} is handled at {}, which is dead", life.port));
        }
    }

    /// A call has ended for its caller, later than it may have by `late`.
    pub(super) fn ended(&self, id: CallId, outcome: &Result<(), Status>, late: Duration) {
        match outcome {
            Ok(()) => self.note(format_args!("call {id} is well")),
            Err(status) => self.note(format_args!("call {id} failed: {status}")),
        }
        if outcome.as_ref().is_err_and(|status| status.attempts() == 0 && status.code() == Code::DataLoss) {
            self.violation(format_args!("call {id} got what nobody sent: {outcome:?}"));
        }
        if outcome.as_ref().is_err_and(|status| status.code() == Code::Internal) {
            self.violation(format_args!("call {id} met a bug: {outcome:?}"));
        }
        if !late.is_zero() {
            self.violation(format_args!("call {id} ended {late:?} too late"));
        }
        let mut book = self.book();
        let Some(call) = book.calls.get_mut(&id) else { return };
        let said = outcome.as_ref().err().map(Status::execution);
        (call.said, call.over) = (Some(said), Some(Instant::now()));
        let (ran, finished, idempotent) = (call.ran.len(), call.finished, call.terms.idempotent);
        drop(book);
        let once = ran == 1 || (idempotent && ran > 0);
        let fits = match said {
            Some(Execution::Never) => ran == 0,
            Some(Execution::Maybe) => ran == 0 || once,
            Some(Execution::Done) | None => once && finished > 0,
        };
        if !fits {
            let ends = format!("{finished} times to its end");
            self.violation(format_args!("call {id} ran {ran} times, {ends}, and its caller was told {outcome:?}"));
        }
    }

    /// A caller has given its call up, or is gone with it.
    pub(super) fn given_up(&self, id: CallId) {
        self.note(format_args!("call {id} is given up"));
        if let Some(call) = self.book().calls.get_mut(&id) {
            (call.said, call.over) = (Some(Some(Execution::Maybe)), Some(Instant::now()));
        }
    }

    /// Since when nobody waits for a call any more.
    pub(super) fn over(&self, id: CallId) -> Option<Over> {
        let book = self.book();
        let call = book.calls.get(&id)?;
        Some(Over { caller: call.terms.from, since: call.over?, is_well: call.said == Some(None) })
    }

    /// An attempt was still running when another one was answered.
    pub(super) fn loser(&self) {
        self.book().losers += 1;
    }

    /// A call of this client may have a second attempt beside the first.
    pub(super) fn hedged(&self, client: Pid) {
        *self.book().hedged.entry(client).or_default() += 1;
    }

    /// A client has made so many second attempts in all, for calls that it began with nothing saved.
    pub(super) fn made_second_attempts(&self, client: Pid, made: usize) {
        let calls = {
            let mut book = self.book();
            book.second_attempts += made;
            book.hedged.get(&client).copied().unwrap_or(0)
        };
        if made * 100 > calls * HEDGING_PERCENT {
            self.violation(format_args!("{client} made {made} second attempts of {calls} calls"));
        }
    }

    /// The end of the world: every call has ended.
    pub(super) fn close(&self) {
        let open: Vec<_> =
            self.book().calls.iter().filter(|(_, call)| call.said.is_none()).map(|(id, _)| *id).collect();
        for id in open {
            self.violation(format_args!("call {id} never ended"));
        }
    }

    /// How many calls ended how: well, never ran, maybe ran, ran; how many of all were made by handlers; second attempts, and attempts
    /// that were still running when another one was answered.
    pub(super) fn counts(&self) -> [usize; 7] {
        let book = self.book();
        let mut counts = [0, 0, 0, 0, 0, book.second_attempts, book.losers];
        for call in book.calls.values() {
            counts[4] += usize::from(call.terms.from > PROCESSES);
            match call.said {
                Some(None) => counts[0] += 1,
                Some(Some(Execution::Never)) => counts[1] += 1,
                Some(Some(Execution::Maybe)) | None => counts[2] += 1,
                Some(Some(Execution::Done)) => counts[3] += 1,
            }
        }
        counts
    }
}
