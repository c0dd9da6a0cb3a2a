//! Where an attempt goes: an endpoint, or an endpoint and the connection to it.
//!
//! Owns nothing but the handles: a call on the short way holds one count instead of two, and finds both with one look at the list.
//! It must never connect. Look next at [`super::target`], which does, and [`super::pool`], which keeps the routes.

use std::fmt;
use std::sync::Arc;

use super::target::Target;
use crate::transport::link::Link;

/// What an attempt may be counted at.
pub(super) trait Place: fmt::Debug + Clone {
    /// The endpoint.
    fn target(&self) -> &Arc<Target>;
}

impl Place for Arc<Target> {
    fn target(&self) -> &Arc<Target> {
        self
    }
}

/// An endpoint and a connection to it, which may be lost by now.
#[derive(Debug)]
pub(super) struct Route {
    target: Arc<Target>,
    link: Arc<Link>,
}

impl Route {
    pub(super) fn new(target: Arc<Target>, link: Arc<Link>) -> Self {
        Self { target, link }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Place for Arc<Route> {
    fn target(&self) -> &Arc<Target> {
        &self.target
    }
}
