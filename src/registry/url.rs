//! A registry chosen by URL, for programs that leave the choice to whoever runs them.
//!
//! Owns the list of schemes. It must never repeat a URL in an error, because a URL can hold a secret. Look next at
//! `settings.rs` for what they have in common, and at `fixed.rs` and the settings of each registry for the rest of their grammar.

use std::sync::Arc;

use super::{Fixed, Memory, Registry, RegistryError};

/// Each scheme, and whether this build has it: one that is missing has the name of its feature.
const SCHEMES: [(&str, bool); 6] = [
    ("consul", cfg!(feature = "consul")),
    ("consul+https", cfg!(feature = "consul")),
    ("manifest", cfg!(feature = "manifest")),
    ("broadcast", cfg!(feature = "broadcast")),
    ("fixed", true),
    ("memory", true),
];

/// The schemes that there are, and those that are left out of this build.
fn schemes() -> String {
    let named = |there: bool| {
        let schemes = SCHEMES.iter().filter(move |(_, is_there)| *is_there == there);
        schemes.map(|(scheme, _)| format!("{scheme}://")).collect::<Vec<_>>().join(", ")
    };
    match named(false) {
        missing if missing.is_empty() => named(true),
        missing => format!("{} (this build has none of {missing}: their features are off)", named(true)),
    }
}

/// The registry that a URL names.
///
/// | URL | registry |
/// | --- | --- |
/// | `consul://127.0.0.1:8500?ttl=30s&token-file=/run/token&dc=dc1&ns=team` | [`Consul`](super::Consul); every option may be left out, and what the URL does not say is taken from Consul's own variables; `consul://` alone takes all of it from there |
/// | `consul+https://consul.example:8501` | the same through TLS |
/// | `manifest://local` | [`Manifest::local`](super::Manifest::local); `manifest://local:3200` on another port |
/// | `manifest://10.0.0.1:3100,10.0.0.2:3100?listen=10.0.0.3:3100&secret-file=/run/secret` | [`Manifest`](super::Manifest): whom to join and where to listen, at least one of both; further options are `heartbeat`, `lifetime` and `allow-remote` |
/// | `broadcast://10.1.255.255:5000?period=2s&key-file=/run/key` | [`Broadcast`](super::Broadcast); `broadcast://` alone means loopback, a multicast group is known by its address (`interface=` names where), and several addresses with `,` between them are a list of single ones; `ignore-process`, `listen-only` and `replica` are switches; the file holds 32 bytes or 64 hexadecimal digits |
/// | `fixed://service1=10.0.0.7:4000,10.0.0.8:4000;service2=db:4000` | [`Fixed`]: entries are separated by `,` or `;`, and one without `name=` belongs to the name before it |
/// | `memory://name` | [`Memory::named`] |
///
/// # Errors
/// [`RegistryError::Settings`] for an unknown scheme, which names the known ones, or for settings that cannot work.
/// The text never contains the URL itself.
pub fn from_url(url: &str) -> Result<Arc<dyn Registry>, RegistryError> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(RegistryError::Settings(format!("the registry's URL has no scheme; there are {}", schemes())));
    };
    match scheme {
        #[cfg(feature = "consul")]
        "consul" => Ok(Arc::new(super::Consul::from_url_parts("http", rest)?)),
        #[cfg(feature = "consul")]
        "consul+https" => Ok(Arc::new(super::Consul::from_url_parts("https", rest)?)),
        #[cfg(feature = "manifest")]
        "manifest" => Ok(Arc::new(super::Manifest::from_url_parts(rest)?)),
        #[cfg(feature = "broadcast")]
        "broadcast" => Ok(Arc::new(super::Broadcast::from_url_rest(rest)?)),
        "fixed" => Ok(Arc::new(Fixed::parse(rest)?)),
        "memory" if rest.is_empty() => {
            Err(RegistryError::Settings("memory:// needs a name, as in memory://test".to_owned()))
        }
        "memory" => Ok(Arc::new(Memory::named(rest))),
        _ => {
            let shown: String = scheme.chars().take(20).collect();
            Err(RegistryError::Settings(format!("unknown registry scheme {shown:?}; there are {}", schemes())))
        }
    }
}
