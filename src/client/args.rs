//! Arguments of a call: anything that serializes as a map, and [`args!`](crate::args) for calls by name.
//!
//! Owns how arguments are written. It must never send them. Look next at [`super::call`].

use bytes::{BufMut, BytesMut};
use serde::Serialize;

use crate::message::{self, Apart};

/// Arguments that a call can be given: any type that serializes to a map (a struct, a `HashMap`), `()` for none, or what
/// [`args!`](crate::args) makes.
///
/// They are encoded while the connection is locked: an implementation of `Serialize` must not make or drop picom calls, nor wait
/// for a lock that is held while somebody does.
pub trait Arguments: Send + Sync + 'static {
    /// Appends them as one MessagePack value, but for the long bytes that it hands back with their places, to be sent by
    /// reference. The error says what cannot be encoded.
    #[doc(hidden)]
    fn encode(&self, out: &mut BytesMut) -> Result<Apart, String>;
}

impl<T: Serialize + Send + Sync + 'static> Arguments for T {
    fn encode(&self, out: &mut BytesMut) -> Result<Apart, String> {
        message::encode_apart(self, out).map_err(|error| error.to_string())
    }
}

/// Bytes that a few short arguments take.
const FEW: usize = 64;

/// Arguments by name, made with [`args!`](crate::args).
#[derive(Clone, Debug, Default)]
pub struct Args {
    count: u32,
    entries: BytesMut,
    /// Made only where it is needed: most arguments are short, and a call is moved several times on its way.
    rare: Option<Box<Rare>>,
}

/// What few arguments have.
#[derive(Clone, Debug, Default)]
struct Rare {
    /// What belongs between the entries.
    apart: Apart,
    problem: Option<String>,
}

impl Args {
    /// No arguments.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. A value that cannot be encoded fails the call, not this.
    #[must_use]
    pub fn with<T: Serialize + 'static>(mut self, name: &str, value: &T) -> Self {
        if self.entries.capacity() == 0 {
            // Most calls have a few short arguments: they grow the buffer once.
            self.entries = BytesMut::with_capacity(FEW);
        }
        let before = self.entries.len();
        let encoded = message::encode_text(name, &mut self.entries).and_then(|()| {
            let start = self.entries.len();
            message::encode_apart(value, &mut self.entries).map(|apart| (start, apart))
        });
        match encoded {
            Ok((start, apart)) => {
                self.count += 1;
                if !apart.is_empty() {
                    let apart = apart.into_iter().map(|(place, bytes)| (start + place, bytes));
                    self.rare.get_or_insert_default().apart.extend(apart);
                }
            }
            Err(error) => {
                self.entries.truncate(before);
                let problem = &mut self.rare.get_or_insert_default().problem;
                problem.get_or_insert(format!("argument `{name}`: {error}"));
            }
        }
        self
    }
}

impl Arguments for Args {
    fn encode(&self, out: &mut BytesMut) -> Result<Apart, String> {
        let start = out.len();
        if let Some(problem) = self.rare.as_deref().and_then(|rare| rare.problem.as_ref()) {
            return Err(problem.clone());
        }
        match u8::try_from(self.count) {
            Ok(count) if count < 16 => out.put_u8(0x80 | count),
            _ => {
                out.put_u8(0xdf);
                out.put_u32(self.count);
            }
        }
        let head = out.len() - start;
        out.put_slice(&self.entries);
        let Some(rare) = &self.rare else { return Ok(Apart::new()) };
        Ok(rare.apart.iter().map(|(place, bytes)| (head + place, bytes.clone())).collect())
    }
}

/// Arguments by name: `args! { a: 2, b: 5 }`.
///
/// Each value may be anything that implements `serde::Serialize`; the call sends one map from name to value.
///
/// ```
/// let limit = 10;
/// let args = picom::args! { user: "ada", limit: limit, tags: vec!["new"] };
/// ```
#[macro_export]
macro_rules! args {
    ($($name:ident : $value:expr),* $(,)?) => {
        $crate::private::Args::new()
            $(.with($crate::private::argument_name(::core::stringify!($name)), &$value))*
    };
}

/// The name of an argument as it goes on the wire: without the mark of a raw identifier.
#[doc(hidden)]
pub fn argument_name(ident: &str) -> &str {
    ident.strip_prefix("r#").unwrap_or(ident)
}
