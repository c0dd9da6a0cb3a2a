//! What a service offers: its methods, their kinds, arguments, documentation and promises.
//!
//! Owns plain data that the macro fills in at compile time and [`Methods`](crate::Methods) at run time. It must
//! never hold behaviour: dispatch lives in [`service`](crate::service). Look next at `macros/` for who writes it.

use std::borrow::Cow;
use std::time::Duration;

/// Text that is usually known at compile time.
pub type Text = Cow<'static, str>;

/// Which of the two directions of a call carry a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One message each way.
    Unary,
    /// One message up, a stream of items down.
    ServerStreaming,
    /// A stream of items up, one message down.
    ClientStreaming,
    /// Streams both ways.
    Bidi,
}

impl Kind {
    /// Whether the caller sends a stream of items after the arguments.
    pub const fn streams_request(self) -> bool {
        matches!(self, Self::ClientStreaming | Self::Bidi)
    }

    /// Whether the answer is a stream of items.
    pub const fn streams_response(self) -> bool {
        matches!(self, Self::ServerStreaming | Self::Bidi)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unary => "unary",
            Self::ServerStreaming => "server streaming",
            Self::ClientStreaming => "client streaming",
            Self::Bidi => "two-way streaming",
        })
    }
}

/// One argument of a method, as written in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDescriptor {
    /// The argument's name: its key in the map of arguments on the wire.
    pub name: Text,
    /// The Rust type as written.
    pub ty: Text,
}

/// One method of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodDescriptor {
    /// The name on the wire.
    pub name: Text,
    /// Other names under which the method answers too.
    pub aliases: Cow<'static, [Text]>,
    /// Which directions stream.
    pub kind: Kind,
    /// Whether running it twice does no harm, so that picom may repeat it after a lost connection.
    pub idempotent: bool,
    /// The deadline that typed clients use when neither the call nor its context names one.
    pub deadline: Option<Duration>,
    /// The longest request message in bytes; `None` means the server's limit.
    pub max_request: Option<usize>,
    /// The longest response message in bytes; `None` means the client's limit.
    pub max_response: Option<usize>,
    /// Most calls of it that one server has at once; `None` means no limit of its own.
    pub max_concurrent: Option<usize>,
    /// The arguments in their order.
    pub args: Cow<'static, [ArgDescriptor]>,
    /// The type of the answer, or of one item of it, as written.
    pub ok: Text,
    /// The application error type as written; empty when there is none.
    pub err: Text,
    /// The documentation comment.
    pub docs: Text,
    /// The note of `#[deprecated]`, if it was given.
    pub deprecated: Option<Text>,
}

impl MethodDescriptor {
    /// A description of an otherwise unremarkable method.
    pub const fn new(name: Text, kind: Kind) -> Self {
        Self {
            name,
            aliases: Cow::Borrowed(&[]),
            kind,
            idempotent: false,
            deadline: None,
            max_request: None,
            max_response: None,
            max_concurrent: None,
            args: Cow::Borrowed(&[]),
            ok: Cow::Borrowed(""),
            err: Cow::Borrowed(""),
            docs: Cow::Borrowed(""),
            deprecated: None,
        }
    }
}

/// What a service offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceDescriptor {
    /// The name of the trait or type that was exposed (not the name under which the node registers).
    pub name: Text,
    /// The documentation comment of the trait or type.
    pub docs: Text,
    /// The methods; their position is the number with which dispatch knows them.
    pub methods: Cow<'static, [MethodDescriptor]>,
}
