//! One file per system under test, each an implementation of [`Peer`](crate::peer::Peer).

pub mod tarpc;
pub mod tonic;
pub mod volo;

#[cfg(test)]
mod tests;
