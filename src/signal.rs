//! Waiting to be told to stop.
//!
//! Owns the two signals that mean it. It must never end the process: that is the program's business. Look next at
//! [`Picom::end`](crate::Picom::end).

use std::fmt;
use std::io;

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: somebody pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: a supervisor asks to stop.
    Terminate,
}

impl Signal {
    /// Its number: 2 or 15.
    pub const fn number(self) -> u8 {
        match self {
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }

    /// Its name: `SIGINT` or `SIGTERM`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// What a program that ends because of it exits with by convention: 128 and its number. A supervisor that asked for the
    /// end may expect 0 instead.
    pub const fn code(self) -> u8 {
        128 + self.number()
    }
}

/// Its name and number: `SIGTERM (15)`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.number())
    }
}

/// Waits for SIGTERM or SIGINT. Cancel safe, but once it was called these signals no longer end the process by themselves.
///
/// Others hear why the node has left, `down: SIGTERM (15)`, where the registry can say it: in the events of a `Manifest` or a
/// `Broadcast`; Consul has no place for it. The process itself ends like one that the signal has ended: with 143 after SIGTERM, 130
/// after SIGINT. Return [`ExitCode::SUCCESS`](std::process::ExitCode::SUCCESS) instead where the supervisor takes everything else
/// for a failure.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// #[tokio::main]
/// async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
///     let node = picom::Picom::new("service1");
///     node.expose(picom::Methods::new()).await?;
///     let signal = picom::shutdown_signal().await?;
///     node.end_with(&signal.to_string()).await?;
///     Ok(ExitCode::from(signal.code()))
/// }
/// ```
///
/// # Errors
/// When the process may not listen to signals.
pub async fn shutdown_signal() -> io::Result<Signal> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok(Signal::Terminate),
            _ = interrupt.recv() => Ok(Signal::Interrupt),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await?;
        Ok(Signal::Interrupt)
    }
}
