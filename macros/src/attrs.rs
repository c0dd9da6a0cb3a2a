//! Attributes that a service and its methods carry to what is generated from them: docs, `cfg`, `deprecated`.
//!
//! Owns which attribute goes where. It must never read `#[rpc]` (that is [`options`](crate::options)). Look next at
//! [`check`](crate::check), which calls it.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, ExprLit, Lit, Meta, Token};

use crate::errors::{Errors, reject};

/// A text that may contain `include_str!` and the like: joined by the compiler, not here.
#[derive(Default)]
pub(crate) struct Text(Vec<TokenStream>);

impl Text {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ToTokens for Text {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let pieces = &self.0;
        tokens.extend(quote!(::core::concat!(#(#pieces),*)));
    }
}

/// The documentation comment, one line per line, without the blank after `///`.
pub(crate) fn docs(attrs: &[Attribute]) -> Text {
    let mut text = Text::default();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("doc")) {
        // `#[doc(hidden)]` and the like are no text.
        let Meta::NameValue(doc) = &attr.meta else { continue };
        if !text.is_empty() {
            text.0.push(quote!("\n"));
        }
        match &doc.value {
            Expr::Lit(ExprLit { lit: Lit::Str(line), .. }) => {
                let line = line.value();
                let line = line.strip_prefix(' ').unwrap_or(&line);
                text.0.push(line.to_token_stream());
            }
            other => text.0.push(other.to_token_stream()),
        }
    }
    text
}

/// The conditions under which the item exists.
pub(crate) fn cfgs(attrs: &[Attribute]) -> Vec<Attribute> {
    attrs.iter().filter(|attr| attr.path().is_ident("cfg") || conditional(attr, &["cfg"])).cloned().collect()
}

/// What the client shows of a method: its documentation and deprecation.
pub(crate) fn shown(attrs: &[Attribute]) -> Vec<Attribute> {
    let names = ["doc", "deprecated"];
    let is_shown = |attr: &&Attribute| names.iter().any(|name| attr.path().is_ident(name)) || conditional(attr, &names);
    attrs.iter().filter(is_shown).cloned().collect()
}

/// The note of `#[deprecated]`; empty when it has none.
pub(crate) fn deprecated(attrs: &[Attribute]) -> Option<String> {
    let attr = attrs.iter().find(|attr| attr.path().is_ident("deprecated"))?;
    let mut note = String::new();
    match &attr.meta {
        Meta::NameValue(meta) => note = string(&meta.value).unwrap_or_default(),
        Meta::List(list) => {
            // A malformed list is rejected by the compiler on the item that keeps it.
            let entries = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default();
            for entry in entries {
                if let Meta::NameValue(entry) = entry {
                    if entry.path.is_ident("note") {
                        note = string(&entry.value).unwrap_or_default();
                    }
                }
            }
        }
        Meta::Path(_) => {}
    }
    Some(note)
}

/// Rejects `#[cfg_attr(…, rpc(…))]`: conditions are not known yet when options are read. One that mixes `cfg` with
/// others is rejected too, because the parts go to different places.
pub(crate) fn check(attrs: &[Attribute], errors: &mut Errors) {
    for attr in attrs {
        let inner = inside(attr);
        if inner.iter().any(|meta| meta.path().is_ident("rpc")) {
            let help = "write two methods with opposite `#[cfg]`s, each with its own `#[rpc(…)]`";
            errors.push(reject(attr, "options of a method cannot be conditional", help));
        } else if inner.len() > 1 && inner.iter().any(|meta| meta.path().is_ident("cfg")) {
            errors.push(reject(attr, "`cfg` must stand alone in a `cfg_attr`", "split it into two attributes"));
        }
    }
}

/// Removes the options of a method: `#[rpc]` is a word of `#[picom::service]`, not an attribute that the compiler knows.
pub(crate) fn strip_rpc(attrs: &mut Vec<Attribute>) {
    attrs.retain(|attr| !attr.path().is_ident("rpc") && !inside(attr).iter().any(|meta| meta.path().is_ident("rpc")));
}

/// Whether this is a `cfg_attr` of nothing but attributes with these names.
fn conditional(attr: &Attribute, names: &[&str]) -> bool {
    let inner = inside(attr);
    !inner.is_empty() && inner.iter().all(|meta| names.iter().any(|name| meta.path().is_ident(name)))
}

/// The attributes inside of a `cfg_attr`.
fn inside(attr: &Attribute) -> Vec<Meta> {
    if !attr.path().is_ident("cfg_attr") {
        return Vec::new();
    }
    let metas = attr.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default();
    metas.into_iter().skip(1).collect()
}

fn string(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
        _ => None,
    }
}
