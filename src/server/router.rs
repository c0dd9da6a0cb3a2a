//! The table of methods of one server.
//!
//! Owns names, aliases and who answers to them. It must never run a handler. Look next at [`super::dispatch`].

use std::collections::HashMap;
use std::sync::Arc;

use super::bulkhead::Bulkhead;
use crate::descriptor::MethodDescriptor;
use crate::service::Service;
use crate::status::{Execution, Status};

/// How alike a name must be to be suggested, from 0 to 1. Below it suggestions are noise.
const ALIKE: f64 = 0.6;

/// Who answers to a name.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) service: Arc<dyn Service>,
    /// The method's position in its descriptor.
    pub(super) method: usize,
    pub(super) name: Arc<str>,
    pub(super) max_request: Option<usize>,
    /// How many calls of it there may be at once.
    pub(super) bulkhead: Option<Arc<Bulkhead>>,
}

/// Every name that the server answers to.
#[derive(Clone, Default)]
pub(super) struct Router {
    routes: HashMap<Arc<str>, Route>,
    idempotent: Vec<String>,
    longest_request: usize,
}

impl Router {
    /// This table with one more service in it.
    pub(super) fn with(&self, service: &Arc<dyn Service>) -> Result<Self, Status> {
        let mut router = self.clone();
        for (index, method) in service.descriptor().methods.iter().enumerate() {
            let bulkhead = method.max_concurrent.map(|max| Arc::new(Bulkhead::new(max)));
            for name in names(method) {
                let name: Arc<str> = name.into();
                if name.is_empty() || name.len() > usize::from(u8::MAX) {
                    return Err(Status::invalid_argument(format!(
                        "method name `{name}`: a name has 1 to 255 bytes, this one {}",
                        name.len()
                    )));
                }
                if name.chars().any(char::is_control) {
                    let shown = name.escape_debug();
                    return Err(Status::invalid_argument(format!(
                        "method name `{shown}`: a name has no control characters"
                    )));
                }
                let route = Route {
                    service: Arc::clone(service),
                    method: index,
                    name: Arc::clone(&name),
                    max_request: method.max_request,
                    bulkhead: bulkhead.clone(),
                };
                if router.routes.insert(Arc::clone(&name), route).is_some() {
                    return Err(Status::already_exists(format!("method `{name}` is already exposed by this node")));
                }
                router.longest_request = router.longest_request.max(method.max_request.unwrap_or(0));
                if method.idempotent {
                    router.idempotent.push(name.to_string());
                }
            }
        }
        Ok(router)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Route> {
        self.routes.get(name)
    }

    /// The methods that may be run twice.
    pub(super) fn idempotent(&self) -> &[String] {
        &self.idempotent
    }

    /// The longest request that any method allows for itself; 0 if none names a limit.
    pub(super) fn longest_request(&self) -> usize {
        self.longest_request
    }

    /// What a caller of a method that is not there is told.
    pub(super) fn unknown(&self, service: &str, name: &str) -> Status {
        let nearest = self
            .routes
            .keys()
            .map(|known| (strsim::jaro_winkler(known, name), known))
            .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)));
        // What a caller sends may be anything, and this goes into logs.
        let name = name.escape_debug();
        let message = match nearest {
            Some((alike, known)) if alike >= ALIKE => {
                format!("{service} has no method `{name}`; the nearest is `{known}`")
            }
            _ => format!("{service} has no method `{name}`"),
        };
        Status::unimplemented(message).with_execution(Execution::Never)
    }
}

fn names(method: &MethodDescriptor) -> impl Iterator<Item = &str> {
    std::iter::once(method.name.as_ref()).chain(method.aliases.iter().map(AsRef::as_ref))
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}
