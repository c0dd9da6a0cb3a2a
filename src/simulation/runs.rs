//! Handlers that run, and whether they stop when nobody waits for them any more.
//!
//! Owns the judgement of that: whoever has an answer, has given up or has no time left cancels what still runs for the call, the
//! attempts that another one was faster than above all, and that arrives within a round trip, as far as the network lets it. It must never
//! end a handler. Look next at [`super::service`], whose handlers these are, and at [`super::delays`] for what the network does not
//! let through.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

use super::flaws::Flaw;
use super::journal::{CallId, Journal, Life};
use super::net::Net;

/// By how much timers and turns may be late.
const SLACK: Duration = Duration::from_millis(5);
/// For how long one goes on that should have stopped, in a world in which that is wrong.
const OVERTIME: Duration = Duration::from_secs(1);

/// Who judges.
#[derive(Clone)]
pub(super) struct Judge {
    pub(super) journal: Arc<Journal>,
    pub(super) net: Arc<Net>,
    pub(super) flaw: Option<Flaw>,
}

/// A handler that runs, until it is dropped.
pub(super) struct Run {
    judge: Judge,
    life: Arc<Life>,
    id: CallId,
    is_finished: bool,
}

impl Judge {
    /// A handler begins.
    pub(super) fn begins(&self, life: &Arc<Life>, id: CallId) -> Run {
        Run { judge: self.clone(), life: Arc::clone(life), id, is_finished: false }
    }

    /// For how long one may run on for which nobody waits any more, if nothing holds up what ends it.
    pub(super) fn limit(&self) -> Duration {
        self.net.round_trip() + SLACK
    }

    fn stopped(&self, life: &Life, id: CallId, is_finished: bool) {
        let Some(over) = self.journal.over(id) else { return };
        if over.is_well && !is_finished {
            self.journal.loser();
        }
        // The dead cancel nothing, and nobody stops them.
        let Some(free) = self.net.without_delays((over.caller, life.pid), over.since) else { return };
        let port = life.port;
        if free > self.limit() {
            let why = if over.is_well { "another attempt was answered" } else { "nobody waits any more" };
            self.journal.violation(format_args!("call {id} runs on at {port} for {free:?}, although {why}"));
        }
    }
}

impl Run {
    /// It has come to its end.
    pub(super) fn finishes(&mut self) {
        self.is_finished = true;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Self { judge, life, id, is_finished } = self;
        if life.is_over() {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) if judge.flaw == Some(Flaw::RunsOn) && !*is_finished => {
                let (judge, life, id) = (judge.clone(), Arc::clone(life), *id);
                runtime.spawn(async move {
                    sleep(OVERTIME).await;
                    judge.stopped(&life, id, true);
                });
            }
            _ => judge.stopped(life, *id, *is_finished),
        }
    }
}
