//! One method's signature: the receiver, the arguments and everything that a method of a service cannot be.
//!
//! Owns the rejections about a `fn` line except those about its answer. It must never look at the item around it.
//! Look next at [`answer`](crate::answer) for the return type and at [`types`](crate::types) for what can travel.

use quote::ToTokens;
use syn::{Attribute, FnArg, GenericParam, Ident, Pat, PatIdent, PatType, Receiver, Signature, Type};

use crate::errors::{Errors, reject};
use crate::model::Arg;
use crate::text;
use crate::types::{check_travels, is_named, is_plain, last, peel, type_arguments};

/// Where a method stands: the help differs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a trait: `has_body` on default bodies.
    Trait { has_body: bool },
    /// In an `impl Type` block, all of whose methods are offered.
    Inherent,
    /// In an `impl Trait for Type` block.
    TraitImpl,
}

impl Place {
    fn has_body(self) -> bool {
        !matches!(self, Self::Trait { has_body: false })
    }

    /// The help for functions that were never meant to be called from afar.
    fn or_move(self, help: &str) -> String {
        match self {
            Self::Inherent => {
                format!("{help}, or move it to another impl block: all of this one is offered to callers")
            }
            _ => help.to_owned(),
        }
    }
}

/// Rejects what no method of a service is: the words before `fn`, generics, and receivers other than `&self`.
pub(crate) fn check_head(sig: &Signature, place: Place, errors: &mut Errors) {
    if sig.asyncness.is_none() {
        let help = place.or_move(&format!("write `async fn {}`", sig.ident));
        errors.push(reject(sig.fn_token, "a method of a service is an `async fn`", &help));
    }
    let words: [(Option<&dyn ToTokens>, &str); 4] = [
        (sig.constness.as_ref().map(|word| word as _), "`const`"),
        (sig.unsafety.as_ref().map(|word| word as _), "`unsafe`"),
        (sig.abi.as_ref().map(|word| word as _), "`extern`"),
        (sig.variadic.as_ref().map(|word| word as _), "variadic"),
    ];
    for (token, word) in words {
        if let Some(token) = token {
            errors.push(reject(token, &format!("a method of a service cannot be {word}"), "write a plain `async fn`"));
        }
    }
    match sig.generics.params.first() {
        None => {}
        Some(GenericParam::Lifetime(_)) => errors.push(reject(
            &sig.generics,
            "a method of a service takes no lifetimes",
            "let arguments be owned; a stream may borrow from `&self` without naming its lifetime",
        )),
        Some(_) => errors.push(reject(
            &sig.generics,
            "a method of a service cannot be generic: callers elsewhere cannot choose its types",
            "use concrete types; an enum can hold alternatives",
        )),
    }
    if let Some(clause) = &sig.generics.where_clause {
        errors.push(reject(clause, "a method of a service has no `where` clause", "remove it"));
    }
    match sig.receiver() {
        Some(receiver) => errors.take(check_receiver(receiver)).unwrap_or_default(),
        None => {
            let help = place.or_move(&format!("write `async fn {}(&self, …)`", sig.ident));
            errors.push(reject(&sig.ident, "a method of a service takes `&self`", &help));
        }
    }
}

fn check_receiver(receiver: &Receiver) -> syn::Result<()> {
    let plain = receiver.colon_token.is_none();
    match &receiver.reference {
        Some((_, None)) if plain && receiver.mutability.is_none() => Ok(()),
        Some(_) if receiver.mutability.is_some() => Err(reject(
            receiver,
            "a method of a service cannot take `&mut self`: calls run side by side",
            "take `&self` and keep what changes in a lock, an atomic or a channel",
        )),
        Some((_, Some(_))) => {
            Err(reject(receiver, "a method of a service takes `&self`", "write `&self`, without a lifetime"))
        }
        _ => Err(reject(
            receiver,
            "a method of a service takes `&self`: the service stays and answers other calls",
            "write `&self`",
        )),
    }
}

/// Reads the arguments, or rejects them.
pub(crate) fn arguments(sig: &Signature, place: Place, errors: &mut Errors) -> Vec<Arg> {
    let mut args = Vec::new();
    for input in &sig.inputs {
        let FnArg::Typed(input) = input else { continue };
        errors.take(check_attributes(&input.attrs));
        let Some(arg) = errors.take(argument(input, place)) else { continue };
        let seen_context = args.iter().any(|arg| matches!(arg, Arg::Context));
        let seen_body = args.iter().any(|arg| matches!(arg, Arg::Body { .. }));
        match arg {
            Arg::Context if seen_context => {
                errors.push(reject(input, "there is one context per call", "take `&Context` once"));
            }
            Arg::Body { .. } if seen_body => errors.push(reject(
                input,
                "a call has one body",
                "stream an enum that holds both kinds of items, or make two methods",
            )),
            Arg::Value { .. } if seen_body => {
                errors.push(reject(input, "no argument comes after the body", "make `Streaming<T>` the last argument"))
            }
            arg => args.push(arg),
        }
    }
    args
}

fn argument(input: &PatType, place: Place) -> syn::Result<Arg> {
    let ty = peel(&input.ty);
    if let Type::Reference(reference) = ty {
        if is_plain(&reference.elem, "Context") {
            if reference.mutability.is_some() || reference.lifetime.is_some() {
                return Err(reject(ty, "the context is only lent", "write `&Context`"));
            }
            return Ok(Arg::Context);
        }
        if is_named(&reference.elem, "Streaming") {
            let help = format!("write `{}`", text::of(&reference.elem));
            return Err(reject(ty, "the method owns the body", &help));
        }
    }
    if is_plain(ty, "Context") {
        let help = "write `&Context`; a type of your own needs another name, or the alias of one";
        return Err(reject(ty, "the context is only lent", help));
    }
    let ident = name(&input.pat, place)?;
    if is_named(ty, "Streaming") {
        return match last(ty).map(type_arguments).as_deref() {
            Some([item]) => {
                check_travels(item, "an item")?;
                Ok(Arg::Body { ident, item: (*item).clone() })
            }
            _ => Err(reject(
                ty,
                "a body has one type of items",
                "write `Streaming<T>`; what a body fails with is always a `Status`",
            )),
        };
    }
    check_travels(ty, "an argument")?;
    Ok(Arg::Value { ident, ty: ty.clone() })
}

/// The name of an argument: its key on the wire.
fn name(pat: &Pat, place: Place) -> syn::Result<Ident> {
    match pat {
        Pat::Ident(PatIdent { by_ref: None, mutability: Some(word), subpat: None, .. }) if !place.has_body() => {
            Err(reject(word, "`mut` is a matter of the implementation", "write it there, and not in the trait"))
        }
        Pat::Ident(PatIdent { by_ref: None, ident, subpat: None, .. }) => Ok(ident.clone()),
        other => Err(reject(
            other,
            "an argument needs a plain name: it is the argument's key on the wire",
            "name it here and take it apart in the body",
        )),
    }
}

fn check_attributes(attrs: &[Attribute]) -> syn::Result<()> {
    match attrs.iter().find(|attr| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr")) {
        None => Ok(()),
        Some(attr) => Err(reject(
            attr,
            "an argument cannot be conditional",
            "make it an `Option`, or write two methods with opposite `#[cfg]`s",
        )),
    }
}
