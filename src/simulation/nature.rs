//! What kind of world it is: who serves how, who calls how, and how busy it gets.
//!
//! Owns what is drawn from the seed about nodes and their options. It must never make any. Look next at [`super::world`].

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use crate::balance::{
    Balancer, Boxcar, Candidate, Candidates, ConsistentHash, LeastOutstanding, PeakEwma, Random, RoundRobin, SUBSET,
    Weighted, ZoneFirst,
};
use crate::builder::Builder;
use crate::{Concurrency, options};

const ZONES: [&str; 2] = ["north", "south"];

/// How servers are chosen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Policy {
    PeakEwma,
    Boxcar,
    LeastOutstanding,
    RoundRobin,
    Random,
    Weighted,
    ConsistentHash,
    NearPeakEwma,
    NearBoxcar,
    Undecided,
}

impl Policy {
    pub(super) fn random(rng: &mut Rng) -> Self {
        use Policy::{
            Boxcar, ConsistentHash, LeastOutstanding, NearBoxcar, NearPeakEwma, PeakEwma, Random, RoundRobin,
            Undecided, Weighted,
        };
        let all = [
            PeakEwma,
            Boxcar,
            LeastOutstanding,
            RoundRobin,
            Random,
            Weighted,
            ConsistentHash,
            NearPeakEwma,
            NearBoxcar,
            Undecided,
        ];
        rng.choice(all).unwrap_or(PeakEwma)
    }

    pub(super) fn balancer(self) -> Arc<dyn Balancer> {
        match self {
            Self::PeakEwma => Arc::new(PeakEwma),
            Self::Boxcar => Arc::new(Boxcar::default()),
            Self::LeastOutstanding => Arc::new(LeastOutstanding),
            Self::RoundRobin => Arc::new(RoundRobin),
            Self::Random => Arc::new(Random),
            Self::Weighted => Arc::new(Weighted),
            Self::ConsistentHash => Arc::new(ConsistentHash),
            Self::NearPeakEwma => Arc::new(ZoneFirst::new(PeakEwma)),
            Self::NearBoxcar => Arc::new(ZoneFirst::new(Boxcar::default())),
            Self::Undecided => Arc::new(Undecided),
        }
    }
}

/// Leaves the choice to picom.
#[derive(Debug)]
struct Undecided;

impl Balancer for Undecided {
    fn pick<'a>(&self, _among: &Candidates<'a>) -> Option<Candidate<'a>> {
        None
    }
}

/// How busy a world is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pressure {
    /// Some calls, spread over seconds.
    Calm,
    /// Many calls that take a while, all at once.
    Rush,
    /// Many calls, most of them short, one after the other.
    Steady,
}

impl Pressure {
    pub(super) fn calls(self, rng: &mut Rng) -> u64 {
        match self {
            Self::Calm => rng.u64(1..14),
            Self::Rush => rng.u64(20..50),
            Self::Steady => rng.u64(200..400),
        }
    }

    pub(super) fn method(self, rng: &mut Rng) -> &'static str {
        let methods = ["once", "once", "again", "again", "items", "sum", "echo"];
        match self {
            Self::Calm | Self::Rush => rng.choice(methods).unwrap_or("once"),
            Self::Steady => "again",
        }
    }

    pub(super) fn hold(self, rng: &mut Rng) -> u64 {
        let holds: &[u64] = match self {
            Self::Calm => &[0, 0, 1, 20, 300, 2000],
            Self::Rush => &[20, 100, 300],
            Self::Steady if rng.u8(..40) == 0 => &[400],
            Self::Steady => &[1, 2, 3, 4, 5],
        };
        rng.choice(holds).copied().unwrap_or_default()
    }

    /// How long what was asked for before takes another replica, if that is another time: the first one had a bad moment.
    pub(super) fn hold_again(self, rng: &mut Rng) -> Option<u64> {
        matches!(self, Self::Steady).then(|| rng.u64(1..6))
    }

    pub(super) fn start(self, rng: &mut Rng) -> Duration {
        Duration::from_millis(match self {
            Self::Calm | Self::Steady => rng.u64(..6000),
            Self::Rush => 500 + rng.u64(..400),
        })
    }
}

/// What is the same everywhere in one world.
#[derive(Clone, Debug)]
pub(super) struct Nature {
    pub(super) pressure: Pressure,
    /// How many servers each service has.
    pub(super) servers: Vec<u16>,
    pub(super) clients: u16,
    /// Windows of a few kilobytes.
    has_small_windows: bool,
}

/// How one node calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    policy: Policy,
    zone: Option<&'static str>,
    pub(super) retries: u32,
    pub(super) deadline: Option<Duration>,
}

/// How one process serves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    caller: Caller,
    concurrency: Concurrency,
    max_running: usize,
    max_calls: u16,
    weight: u16,
    age: Option<Duration>,
    drain_delay: Duration,
    drain_timeout: Duration,
    has_small_windows: bool,
    /// Most calls at once of the method that changes something.
    pub(super) at_once: Option<usize>,
}

impl Nature {
    pub(super) fn random(rng: &mut Rng) -> Self {
        let pressure = match rng.u8(..12) {
            0 | 1 => Pressure::Rush,
            2 => Pressure::Steady,
            _ => Pressure::Calm,
        };
        // More than one client uses, now and then.
        let many = SUBSET as u16 + rng.u16(1..4);
        let mut servers = vec![if rng.u8(..100) == 0 { many } else { rng.choice([1, 1, 2, 3, 4]).unwrap_or(1) }];
        while servers.len() < super::service::SERVICES.len() && rng.bool() {
            servers.push(rng.u16(1..3));
        }
        Self { pressure, servers, clients: rng.u16(1..4), has_small_windows: rng.u8(..4) == 0 }
    }

    pub(super) fn server(&self, rng: &mut Rng) -> Server {
        let concurrency = match rng.u8(..6) {
            0 | 1 => Concurrency::Adaptive,
            2 => Concurrency::Gradient,
            3 | 4 => Concurrency::Fixed(rng.usize(1..5)),
            _ => Concurrency::Unlimited,
        };
        let millis = |rng: &mut Rng, of: [u64; 3]| Duration::from_millis(rng.choice(of).unwrap_or_default());
        Server {
            caller: Caller::random(rng),
            concurrency,
            max_running: if rng.u8(..6) == 0 { rng.usize(1..8) } else { options::MAX_RUNNING },
            max_calls: rng.choice([options::MAX_CALLS, options::MAX_CALLS, 8, 2]).unwrap_or(2),
            weight: rng.u16(1..5),
            age: (rng.u8(..4) == 0).then(|| millis(rng, [300, 2000, 5000])),
            drain_delay: millis(rng, [0, 50, 500]),
            drain_timeout: millis(rng, [0, 1000, 10_000]),
            has_small_windows: self.has_small_windows,
            at_once: (rng.u8(..4) == 0).then(|| rng.usize(1..4)),
        }
    }
}

impl Caller {
    pub(super) fn random(rng: &mut Rng) -> Self {
        Self {
            policy: Policy::random(rng),
            zone: if rng.bool() { rng.choice(ZONES) } else { None },
            retries: rng.choice([options::RETRIES, options::RETRIES, 0, 1, 2, 4]).unwrap_or(options::RETRIES),
            deadline: rng
                .choice([Some(options::DEADLINE), Some(options::DEADLINE), Some(Duration::from_secs(2)), None])
                .flatten(),
        }
    }

    pub(super) fn apply(&self, builder: Builder) -> Builder {
        let builder = builder.balance(self.policy.balancer()).retries(self.retries).deadline(self.deadline);
        match self.zone {
            Some(zone) => builder.zone(zone),
            None => builder,
        }
    }
}

impl Server {
    pub(super) fn apply(&self, builder: Builder) -> Builder {
        // Those who call for a handler have what the handler has, and no longer than usual.
        let caller = Caller { deadline: Some(options::DEADLINE), ..self.caller };
        let builder = caller
            .apply(builder)
            .concurrency(self.concurrency)
            .max_running(self.max_running)
            .max_calls(self.max_calls)
            .weight(self.weight)
            .max_connection_age(self.age)
            .drain_delay(self.drain_delay)
            .drain_timeout(self.drain_timeout);
        if self.has_small_windows { builder.stream_window(4096).connection_window(16_384) } else { builder }
    }
}
