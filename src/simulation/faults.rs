//! What befalls a world, and when.
//!
//! Owns the choice, made from the seed before anything happens. It must never do anything. Look next at [`super::world`].

use std::time::Duration;

use fastrand::Rng;

use super::net::{Death, Host};

/// Faults begin within this time, in milliseconds.
const SPAN: u64 = 8000;

#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Nothing passes in one direction.
    Block { from: Host, to: Host, time: Duration },
    /// What goes to and from a host takes so much longer.
    Slow { host: Host, more: Duration, time: Duration },
    /// A server dies without a word.
    Crash { host: Host, death: Death },
    /// A client dies.
    Vanish { client: Host, death: Death },
    /// One that is dead, or has ended, comes back as another incarnation.
    Restart { host: Host, same_port: bool },
    /// A server leaves in good order.
    End { host: Host },
    /// A server asks for no calls, or for calls again.
    Stop { host: Host, running: bool },
    /// Consul answers nobody, or everybody again.
    Consul { down: bool },
    /// Consul forgets everything.
    Amnesia,
    /// Consul does not answer this one, or does again.
    Cut { host: Host, cut: bool },
    /// This one is not told of changes, or is again.
    Deaf { host: Host, deaf: bool },
    /// What Consul says to this one is so old when it comes.
    Lag { host: Host, lag: Duration },
    /// A connection is reset.
    Reset { which: usize },
}

/// The script of a world, in the order of time.
pub(super) struct Faults(std::vec::IntoIter<(Duration, Fault)>);

impl Faults {
    pub(super) fn random(rng: &mut Rng, (servers, clients): (Vec<Host>, Vec<Host>)) -> Self {
        let mut script: Vec<(Duration, Fault)> = Vec::new();
        for _ in 0..rng.usize(..9) {
            let at = Duration::from_millis(rng.u64(..SPAN));
            let time = Duration::from_millis(rng.choice([30, 800, 4000, 15_000]).unwrap_or(30));
            let (server, client) =
                (rng.choice(&servers).copied().unwrap_or(0), rng.choice(&clients).copied().unwrap_or(0));
            let anybody = if rng.bool() { server } else { client };
            match rng.u8(..13) {
                0 => script.push((at, Fault::Block { from: server, to: client, time })),
                1 => script.push((at, Fault::Block { from: client, to: server, time })),
                2 => {
                    script.push((at, Fault::Block { from: server, to: client, time }));
                    script.push((at, Fault::Block { from: client, to: server, time }));
                }
                3 | 4 => {
                    script.push((at, Fault::Crash { host: server, death: death(rng) }));
                    script.push((at + time, Fault::Restart { host: server, same_port: rng.bool() }));
                }
                5 => {
                    script.push((at, Fault::End { host: server }));
                    script.push((at + time, Fault::Restart { host: server, same_port: rng.bool() }));
                }
                6 => {
                    script.push((at, Fault::Stop { host: server, running: false }));
                    script.push((at + time, Fault::Stop { host: server, running: true }));
                }
                7 => {
                    script.push((at, Fault::Consul { down: true }));
                    script.push((at + time, Fault::Consul { down: false }));
                }
                8 => {
                    script.push((at, Fault::Amnesia));
                    script.push((at + time, Fault::Amnesia));
                }
                9 => match rng.u8(..3) {
                    0 => {
                        script.push((at, Fault::Cut { host: anybody, cut: true }));
                        script.push((at + time, Fault::Cut { host: anybody, cut: false }));
                    }
                    1 => {
                        script.push((at, Fault::Deaf { host: client, deaf: true }));
                        script.push((at + time, Fault::Deaf { host: client, deaf: false }));
                    }
                    _ => script.push((at, Fault::Lag { host: client, lag: time.min(Duration::from_secs(4)) })),
                },
                10 => script.push((at, Fault::Vanish { client, death: death(rng) })),
                11 => {
                    let more = Duration::from_millis(rng.choice([100, 700, 3500]).unwrap_or(100));
                    script.push((at, Fault::Slow { host: anybody, more, time }));
                }
                _ => script.push((at, Fault::Reset { which: rng.usize(..4) })),
            }
        }
        script.sort_by_key(|(at, _)| *at);
        Self(script.into_iter())
    }
}

fn death(rng: &mut Rng) -> Death {
    rng.choice([Death::Killed, Death::Reset, Death::Silent]).unwrap_or(Death::Killed)
}

impl Iterator for Faults {
    type Item = (Duration, Fault);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}
