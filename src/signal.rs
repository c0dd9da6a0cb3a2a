//! Waiting to be told to stop.
//!
//! Owns the two signals that mean it. It must never end the process: that is the program's business. Look next at
//! [`Picom::end`](crate::Picom::end).

use std::io;

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: somebody pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: a supervisor asks to stop.
    Terminate,
}

/// Waits for SIGTERM or SIGINT. Cancel safe, but once it was called these signals no longer end the process by themselves.
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
