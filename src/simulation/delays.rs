//! When the network has held something up, so that nobody is blamed for what it has done.
//!
//! Owns the record, and how much of a time it leaves. It must never hold anything up itself. Look next at [`super::net`], which does
//! and writes it down here, and at [`super::runs`], for whom it is.

use std::time::Duration;

use tokio::time::Instant;

use super::net::Host;

/// Once all faults are over, how long until what they have held up has arrived: a host is slow by less, and who waits for the end of a
/// partition looks again every second.
const LAST_DELAY: Duration = Duration::from_secs(4);

/// Everything that was held up in one world.
#[derive(Default)]
pub(super) struct Delays(Vec<Delay>);

struct Delay {
    what: Delayed,
    from: Instant,
    /// `None` as long as it lasts.
    until: Option<Instant>,
}

/// What was held up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Delayed {
    /// What goes one way.
    From(Host, Host),
    /// What goes to and from a host.
    At(Host),
}

/// A delay that has no end yet, by its number.
pub(super) struct Number(usize);

impl Delays {
    /// Something is held up from now on, for so long if that is known.
    pub(super) fn begins(&mut self, what: Delayed, time: Option<Duration>) -> Number {
        let from = Instant::now();
        self.0.push(Delay { what, from, until: time.map(|time| from + time) });
        Number(self.0.len() - 1)
    }

    /// One of them is over.
    pub(super) fn ends(&mut self, number: &Number) {
        self.0[number.0].until = Some(Instant::now());
    }

    /// All faults are over.
    pub(super) fn heal(&mut self) {
        let soon = Instant::now() + LAST_DELAY;
        let ends = self.0.iter_mut().filter_map(|delay| delay.until.as_mut());
        ends.for_each(|until| *until = soon.min(*until));
    }

    /// How much of the time since then nothing held up what goes this way.
    pub(super) fn without(&self, (from, to): (Host, Host), since: Instant) -> Duration {
        let now = Instant::now();
        let concerns = |delay: &&Delay| match delay.what {
            Delayed::From(one, other) => (one, other) == (from, to),
            Delayed::At(host) => host == from || host == to,
        };
        let mut delays: Vec<_> = self.0.iter().filter(concerns).map(|delay| (delay.from, delay.until)).collect();
        delays.sort();
        let (mut free, mut at) = (Duration::ZERO, since);
        for (from, until) in delays {
            free += from.saturating_duration_since(at);
            at = at.max(until.unwrap_or(now).min(now));
        }
        free + now.saturating_duration_since(at)
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_held_up_more_than_once_counts_once() {
    let second = Duration::from_secs(1);
    let (mut delays, start) = (Delays::default(), Instant::now());
    let [free, same, back] = [(1, 2), (1, 3), (3, 1)];
    let pass = |seconds: u32| tokio::time::advance(second * seconds);
    pass(1).await;
    delays.begins(Delayed::From(1, 3), Some(4 * second));
    pass(1).await;
    // Within the first one, and longer than it.
    delays.begins(Delayed::From(1, 3), Some(second));
    pass(1).await;
    let open = delays.begins(Delayed::At(3), None);
    pass(4).await;
    assert_eq!([free, same, back].map(|way| delays.without(way, start)), [7 * second, second, 3 * second]);
    delays.ends(&open);
    delays.begins(Delayed::At(1), Some(100 * second));
    pass(1).await;
    delays.heal();
    pass(10).await;
    assert_eq!([free, same, back].map(|way| delays.without(way, start)), [13 * second, 7 * second, 9 * second]);
    assert_eq!(delays.without(same, Instant::now()), Duration::ZERO);
}
