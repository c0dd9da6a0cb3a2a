//! One file per system under test, each an implementation of [`Peer`](crate::peer::Peer).
