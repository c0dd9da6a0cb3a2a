//! A registry chosen by URL, for programs that leave the choice to whoever runs them.
//!
//! Owns the list of schemes. It must never repeat a URL in an error, because a URL can hold a secret. Look next at
//! `consul/settings.rs` and `fixed.rs` for the rest of their grammar.

use std::sync::Arc;

use super::{Fixed, Memory, Registry, RegistryError};

#[cfg(all(feature = "consul", feature = "manifest"))]
const SCHEMES: &str = "consul://, consul+https://, manifest://, fixed:// and memory://";
#[cfg(all(feature = "consul", not(feature = "manifest")))]
const SCHEMES: &str = "consul://, consul+https://, fixed:// and memory:// (this build lacks the feature `manifest`)";
#[cfg(all(not(feature = "consul"), feature = "manifest"))]
const SCHEMES: &str = "manifest://, fixed:// and memory:// (this build has no consul://: its feature `consul` is off)";
#[cfg(not(any(feature = "consul", feature = "manifest")))]
const SCHEMES: &str =
    "fixed:// and memory:// (this build has no consul://: its feature `consul` is off; and no `manifest`)";

/// The registry that a URL names.
///
/// | URL | registry |
/// | --- | --- |
/// | `consul://127.0.0.1:8500?ttl=30s&token-file=/run/token&dc=dc1&ns=team` | [`Consul`](super::Consul); every option may be left out, and what the URL does not say is taken from Consul's own variables; `consul://` alone takes all of it from there |
/// | `consul+https://consul.example:8501` | the same through TLS |
/// | `manifest://local` | [`Manifest::local`](super::Manifest::local); `manifest://local:3200` on another port |
/// | `manifest://10.0.0.1:3100,10.0.0.2:3100?listen=10.0.0.3:3100&secret-file=/run/secret` | [`Manifest`](super::Manifest): whom to join and where to listen, at least one of both; further options are `heartbeat`, `lifetime` and `allow-remote` |
/// | `fixed://service1=10.0.0.7:4000,10.0.0.8:4000;service2=db:4000` | [`Fixed`]: entries are separated by `,` or `;`, and one without `name=` belongs to the name before it |
/// | `memory://name` | [`Memory::named`] |
///
/// # Errors
/// [`RegistryError::Settings`] for an unknown scheme, which names the known ones, or for settings that cannot work.
/// The text never contains the URL itself.
pub fn from_url(url: &str) -> Result<Arc<dyn Registry>, RegistryError> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(RegistryError::Settings(format!("the registry's URL has no scheme; there are {SCHEMES}")));
    };
    match scheme {
        #[cfg(feature = "consul")]
        "consul" => Ok(Arc::new(super::Consul::from_url_parts("http", rest)?)),
        #[cfg(feature = "consul")]
        "consul+https" => Ok(Arc::new(super::Consul::from_url_parts("https", rest)?)),
        #[cfg(feature = "manifest")]
        "manifest" => Ok(Arc::new(super::Manifest::from_url_parts(rest)?)),
        "fixed" => Ok(Arc::new(Fixed::parse(rest)?)),
        "memory" if rest.is_empty() => {
            Err(RegistryError::Settings("memory:// needs a name, as in memory://test".to_owned()))
        }
        "memory" => Ok(Arc::new(Memory::named(rest))),
        _ => {
            let shown: String = scheme.chars().take(20).collect();
            Err(RegistryError::Settings(format!("unknown registry scheme {shown:?}; there are {SCHEMES}")))
        }
    }
}
