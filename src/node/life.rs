//! What a node says of itself, in one order for everybody.
//!
//! Owns the state, the registration that tells others of it, and the lock that keeps the two together: what the node says last
//! is what the registry was told last. It must never wait: whoever changes the state may be anywhere. Look next at
//! [`crate::state`] for which state may follow which.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::registry::Registration;
use crate::state::{NodeState, NodeStatus, TransitionError};

/// The state of a node; shared by its clones and by whatever changes its state for it.
#[derive(Debug)]
pub(super) struct Life(Mutex<Now>);

#[derive(Debug)]
struct Now {
    status: NodeStatus,
    registration: Option<Registration>,
}

impl Life {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Now { status: NodeStatus::only(NodeState::Down), registration: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> NodeStatus {
        self.lock().status.clone()
    }

    /// Goes to another state if it may, and tells the registry.
    pub(super) fn become_state(&self, state: NodeState, reason: Option<&str>) -> Result<(), TransitionError> {
        let mut now = self.lock();
        now.status = now.status.then(state, reason)?;
        if let Some(registration) = &now.registration {
            registration.set_status(now.status.clone());
        }
        Ok(())
    }

    /// Comes up, in a first state with which to register. Unless the birth is completed, it is down again when that is dropped.
    pub(super) fn begin(self: &Arc<Self>, first: NodeStatus) -> Birth {
        self.lock().status = first;
        Birth(Some(Arc::clone(self)))
    }

    /// Another registration takes the place of the one that there is. The one that is left over is the caller's to take back.
    pub(super) fn replace(&self, registration: Registration, told: &NodeStatus) -> Registration {
        let mut now = self.lock();
        if now.status != *told {
            registration.set_status(now.status.clone());
        }
        match &mut now.registration {
            Some(current) => std::mem::replace(current, registration),
            // The node has ended meanwhile.
            None => registration,
        }
    }

    /// Goes down; what registered it is the caller's to take back. A reason is told first, to registries that can say it.
    pub(super) fn end(&self, reason: Option<&str>) -> Option<Registration> {
        let mut now = self.lock();
        now.status = NodeStatus::now(NodeState::Down, reason);
        let registration = now.registration.take();
        if let (Some(registration), Some(_)) = (&registration, reason) {
            registration.set_status(now.status.clone());
        }
        registration
    }
}

/// A node that is about to be registered.
#[must_use]
pub(super) struct Birth(Option<Arc<Life>>);

impl Birth {
    /// It is registered, with this state. What the node has said meanwhile is told now.
    pub(super) fn complete(mut self, registration: Registration, told: &NodeStatus) {
        let Some(life) = self.0.take() else { return };
        let mut now = life.lock();
        if now.status != *told {
            registration.set_status(now.status.clone());
        }
        now.registration = Some(registration);
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        if let Some(life) = self.0.take() {
            life.end(None);
        }
    }
}
