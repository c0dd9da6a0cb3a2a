//! What happened in a world, and what must never have.
//!
//! Owns the log, the record of what ran where, what each client's list says, and the violations. It must never change what
//! happens. Look next at [`super::work`] for the calls that are judged here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::registry::{Endpoint, Endpoints, Freshness};
use crate::{Code, Execution, Status};

/// For how long one that the list does not offer any more may still be used.
const REMOVED_LIMIT: Duration = Duration::from_secs(1);

/// A call by its number in the world.
pub(super) type CallId = u64;

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
    /// Since when an address is not offered to its client any more.
    removed: BTreeMap<SocketAddr, Instant>,
    listed: BTreeMap<u16, (Vec<SocketAddr>, String)>,
}

struct Entry {
    idempotent: bool,
    from: u16,
    began: Instant,
    /// The ports of those who ran it.
    ran: Vec<u16>,
    said: Option<Option<Execution>>,
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
    pub(super) fn listed(&self, client: u16, list: &Endpoints) {
        let now = Instant::now();
        // Of the others it knows, but not as anybody to call.
        let usable: Vec<_> = list.usable().iter().map(|endpoint| endpoint.addr).collect();
        let entry = |endpoint: &Arc<Endpoint>| {
            format!("{} {:?} {}", endpoint.addr.port(), endpoint.tier, endpoint.status.state)
        };
        let entries: Vec<_> = list.endpoints.iter().map(entry).collect();
        let stale = if list.freshness == Freshness::Live { "" } else { ", stale" };
        let shown = format!("client {client} lists {entries:?}{stale}");
        let mut book = self.book();
        let Book { listed, removed, .. } = &mut *book;
        let (before, shown_before) = listed.remove(&client).unwrap_or_default();
        let is_news = shown != shown_before;
        for gone in before.into_iter().filter(|addr| !usable.contains(addr)) {
            removed.insert(gone, now);
        }
        removed.retain(|addr, _| !usable.contains(addr));
        listed.insert(client, (usable, shown.clone()));
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

    /// A call begins.
    pub(super) fn began(&self, id: CallId, from: u16, idempotent: bool) {
        let entry = Entry { idempotent, from, began: Instant::now(), ran: Vec::new(), said: None };
        self.book().calls.insert(id, entry);
    }

    /// A handler runs, at the server with this port.
    pub(super) fn ran(&self, id: CallId, port: u16) {
        let mut wrong = Vec::new();
        let mut book = self.book();
        let Book { calls, removed, .. } = &mut *book;
        match calls.get_mut(&id) {
            None => wrong.push(format!("a call {id} runs that nobody made")),
            Some(call) => {
                call.ran.push(port);
                if !call.idempotent && call.ran.len() > 1 {
                    wrong.push(format!("call {id} ran twice, at {:?}", call.ran));
                }
                if call.said == Some(Some(Execution::Never)) {
                    wrong.push(format!("call {id} runs, of which was said that it never did"));
                }
                let addr = crate::transport::simulated::addr(call.from, port);
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
        wrong.into_iter().for_each(|wrong| self.violation(wrong));
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
        call.said = Some(said);
        let (ran, idempotent) = (call.ran.len(), call.idempotent);
        drop(book);
        let fits = match said {
            Some(Execution::Never) => ran == 0,
            Some(Execution::Maybe) => ran <= 1 || idempotent,
            Some(Execution::Done) | None => ran == 1 || (idempotent && ran > 0),
        };
        if !fits {
            self.violation(format_args!("call {id} ran {ran} times, and its caller was told {outcome:?}"));
        }
    }

    /// A caller has given its call up.
    pub(super) fn given_up(&self, id: CallId) {
        self.note(format_args!("call {id} is given up"));
        if let Some(call) = self.book().calls.get_mut(&id) {
            call.said = Some(Some(Execution::Maybe));
        }
    }

    /// A client is gone, and what it called.
    pub(super) fn vanished(&self, client: u16) {
        let open = |call: &&mut Entry| call.from == client && call.said.is_none();
        self.book().calls.values_mut().filter(open).for_each(|call| call.said = Some(Some(Execution::Maybe)));
    }

    /// The end of the world: every call has ended.
    pub(super) fn close(&self) {
        let open: Vec<_> =
            self.book().calls.iter().filter(|(_, call)| call.said.is_none()).map(|(id, _)| *id).collect();
        for id in open {
            self.violation(format_args!("call {id} never ended"));
        }
    }

    /// How many calls ended how: well, never ran, maybe ran, ran.
    pub(super) fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for call in self.book().calls.values() {
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

#[tokio::test(start_paused = true)]
async fn what_must_never_happen_is_seen() {
    let of = |happens: &dyn Fn(&Journal)| {
        let journal = Journal::new();
        journal.began(1, 100, false);
        journal.began(2, 100, true);
        happens(&journal);
        let book = journal.book();
        book.violations.join("; ")
    };
    let failed = |execution| Err(Status::unavailable("gone").with_execution(execution));
    let soon = Duration::ZERO;
    let fine = of(&|journal| {
        journal.ran(1, 4000);
        journal.ended(1, &Ok(()), soon);
        journal.ran(2, 4000);
        journal.ran(2, 4001);
        journal.ended(2, &failed(Execution::Maybe), soon);
        journal.close();
    });
    assert_eq!(fine, "");
    let twice = of(&|journal| [4000, 4001].into_iter().for_each(|port| journal.ran(1, port)));
    assert_eq!(twice, "call 1 ran twice, at [4000, 4001]");
    let lied = of(&|journal| {
        journal.ran(2, 4000);
        journal.ended(2, &failed(Execution::Never), soon);
    });
    assert!(lied.starts_with("call 2 ran 1 times, and its caller was told"), "{lied}");
    let early = of(&|journal| {
        journal.ended(1, &failed(Execution::Never), soon);
        journal.ran(1, 4000);
    });
    assert_eq!(early, "call 1 runs, of which was said that it never did");
    let idle = of(&|journal| journal.ended(1, &failed(Execution::Done), soon));
    assert!(idle.starts_with("call 1 ran 0 times"), "{idle}");
    let open = of(&|journal| journal.close());
    assert_eq!(open, "call 1 never ended; call 2 never ended");
    let slow = of(&|journal| {
        journal.ran(1, 4000);
        journal.ended(1, &Ok(()), Duration::from_millis(1));
    });
    assert_eq!(slow, "call 1 ended 1ms too late");
    let nobody = of(&|journal| journal.ran(3, 4000));
    assert_eq!(nobody, "a call 3 runs that nobody made");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_not_listed_any_more_is_seen_when_it_is_used() {
    let (journal, addr) = (Journal::new(), crate::transport::simulated::addr(100, 4000));
    let list = |endpoints| Endpoints { freshness: Freshness::Live, endpoints, ..Endpoints::unknown() };
    journal.listed(100, &list(vec![Arc::new(Endpoint::new(addr))]));
    journal.listed(100, &list(Vec::new()));
    tokio::time::advance(REMOVED_LIMIT).await;
    journal.dials(addr);
    journal.began(1, 100, false);
    journal.ran(1, 4000);
    assert_eq!(journal.book().violations, [""; 0], "at the limit");
    tokio::time::advance(Duration::from_millis(1)).await;
    journal.dials(addr);
    journal.began(2, 100, false);
    journal.ran(2, 4000);
    assert_eq!(journal.book().violations.len(), 2, "one past it");
    journal.listed(100, &list(vec![Arc::new(Endpoint::new(addr))]));
    journal.dials(addr);
    assert_eq!(journal.book().violations.len(), 2, "it is back");
}
