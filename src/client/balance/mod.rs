//! Which endpoint gets the next attempt.
//!
//! Owns the [`Balance`] trait and its policies. A policy must never connect or wait: it chooses among what it is shown.
//! Look next at [`round_robin`].

mod round_robin;

pub(super) use round_robin::RoundRobin;

use std::sync::Arc;

use super::target::Target;

/// Chooses endpoints. One policy is shared by all calls to one service.
pub(super) trait Balance: std::fmt::Debug + Send + Sync + 'static {
    /// The position of the endpoint to use, `None` only if there is none. `tried` are those that this call has used
    /// before; they come last.
    fn pick(&self, targets: &[Arc<Target>], tried: &[Arc<Target>]) -> Option<usize>;
}
