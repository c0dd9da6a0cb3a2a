//! A service as the expansion sees it: checked, and free of syntax that no longer matters.
//!
//! Owns the types between checking and expanding. It must never reject anything nor write code. Look next at
//! [`check`](crate::check), which builds it, and at `expand_*`, which read it.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt;
use syn::{Attribute, Ident, Path, Type, Visibility};

use crate::attrs::Text;
use crate::options::MethodOptions;

/// A service and all of its methods, in the order of the source.
pub(crate) struct Service {
    /// The path to picom.
    pub(crate) picom: Path,
    /// The trait, or the last word of the type.
    pub(crate) ident: Ident,
    /// Its name in the descriptor.
    pub(crate) name: String,
    /// What comes before the names of methods on the wire.
    pub(crate) prefix: Option<String>,
    /// How visible the generated types are.
    pub(crate) vis: Visibility,
    pub(crate) docs: Text,
    /// Conditions under which the service exists at all.
    pub(crate) cfgs: Vec<Attribute>,
    pub(crate) methods: Vec<Method>,
}

impl Service {
    /// The module of everything that an expansion may name.
    pub(crate) fn private(&self) -> TokenStream {
        let picom = &self.picom;
        quote!(#picom::private)
    }

    /// The same with another place, so that errors about what is called there are shown there.
    pub(crate) fn private_at(&self, span: Span) -> TokenStream {
        let respan = |mut token: TokenTree| {
            token.set_span(at(span));
            token
        };
        self.private().into_iter().map(respan).collect()
    }

    pub(crate) fn client(&self) -> Ident {
        format_ident!("{}Client", self.ident.unraw(), span = self.ident.span())
    }

    pub(crate) fn server(&self) -> Ident {
        format_ident!("{}Server", self.ident.unraw(), span = self.ident.span())
    }

    /// The struct that holds the arguments of a method.
    pub(crate) fn arguments(&self, method: &Method) -> Ident {
        format_ident!("__{}_{}", self.ident.unraw(), method.ident.unraw(), span = at(method.ident.span()))
    }

    /// The name of a method on the wire.
    pub(crate) fn wire_name(&self, method: &Method) -> String {
        let name = match &method.options.name {
            Some(name) => name.value(),
            None => method.ident.unraw().to_string(),
        };
        match &self.prefix {
            Some(prefix) => format!("{prefix}.{name}"),
            None => name,
        }
    }
}

/// One method.
pub(crate) struct Method {
    pub(crate) ident: Ident,
    pub(crate) options: MethodOptions,
    pub(crate) docs: Text,
    /// Conditions under which the method exists: they stand before every trace of it.
    pub(crate) cfgs: Vec<Attribute>,
    /// What the client's method shows besides: documentation, deprecation.
    pub(crate) shown: Vec<Attribute>,
    /// The note of `#[deprecated]`.
    pub(crate) deprecated: Option<String>,
    /// In the order of the source.
    pub(crate) args: Vec<Arg>,
    pub(crate) answer: Answer,
}

impl Method {
    /// The arguments that travel before the body.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&Ident, &Type)> {
        self.args.iter().filter_map(|arg| match arg {
            Arg::Value { ident, ty } => Some((ident, ty)),
            Arg::Context | Arg::Body { .. } => None,
        })
    }

    /// The streamed body: its name and the type of its items.
    pub(crate) fn body(&self) -> Option<(&Ident, &Type)> {
        self.args.iter().find_map(|arg| match arg {
            Arg::Body { ident, item } => Some((ident, item)),
            Arg::Value { .. } | Arg::Context => None,
        })
    }

    /// The variant of `Kind`.
    pub(crate) fn kind(&self) -> Ident {
        let kind = match (self.body().is_some(), self.answer.stream) {
            (false, None) => "Unary",
            (false, Some(_)) => "ServerStreaming",
            (true, None) => "ClientStreaming",
            (true, Some(_)) => "Bidi",
        };
        Ident::new(kind, Span::call_site())
    }
}

/// One argument besides `&self`.
pub(crate) enum Arg {
    /// Travels under its name.
    Value { ident: Ident, ty: Type },
    /// `&Context`: made by the server, absent in the client.
    Context,
    /// `Streaming<T>`.
    Body { ident: Ident, item: Type },
}

/// What a method answers with.
pub(crate) struct Answer {
    /// The type of the message, or of one item.
    pub(crate) ok: TypeOf,
    /// The type of errors; `None` where only the framework can fail.
    pub(crate) err: Option<TypeOf>,
    /// Whether the method itself returns a `Result`.
    pub(crate) is_result: bool,
    /// Set on a stream.
    pub(crate) stream: Option<Items>,
    /// Where errors about the answer's type belong.
    pub(crate) span: Span,
}

/// What one item of a stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Items {
    /// The item itself.
    Plain,
    /// A `Result` of it.
    Fallible,
}

/// A type that is known as written, or as one side of an alias of `Result` whose other side the alias hides.
pub(crate) enum TypeOf {
    Written(Type),
    Ok(Type),
    Err(Type),
}

impl TypeOf {
    /// The type in code.
    pub(crate) fn tokens(&self, private: &TokenStream) -> TokenStream {
        match self {
            Self::Written(ty) => ty.to_token_stream(),
            Self::Ok(alias) => quote!(<#alias as #private::ResultLike>::Ok),
            Self::Err(alias) => quote!(<#alias as #private::ResultLike>::Err),
        }
    }
}

/// The place of `span` for errors, with names that resolve like all other generated ones: a span from within a
/// `macro_rules!` would otherwise hide local variables from each other.
pub(crate) fn at(span: Span) -> Span {
    Span::call_site().located_at(span)
}
