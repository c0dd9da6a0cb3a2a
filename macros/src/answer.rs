//! What a method's return type means: a message or a stream, and how it can fail.
//!
//! Owns the reading of return types and the rejections about them. It must never look at arguments. Look next at
//! [`expand_server`](crate::expand_server), which turns the reading into a call of the runtime.

use syn::spanned::Spanned;
use syn::{GenericArgument, PathArguments, ReturnType, Type, TypeParamBound};

use crate::errors::reject;
use crate::model::{Answer, Items, TypeOf};
use crate::text;
use crate::types::{bound, check_travels, is_named, last, peel, type_arguments};

/// Reads a return type.
pub(crate) fn read(output: &ReturnType) -> syn::Result<Answer> {
    let unit: Type = syn::parse_quote!(());
    let ty = match output {
        ReturnType::Default => &unit,
        ReturnType::Type(_, ty) => peel(ty),
    };
    let span = ty.span();
    if let Some(items) = stream(ty)? {
        let Stream { ok, err, items } = items;
        return Ok(Answer { ok, err, is_result: false, stream: Some(items), span });
    }
    let Some(result) = result(ty) else {
        check_travels(ty, "an answer")?;
        return Ok(Answer { ok: TypeOf::Written(ty.clone()), err: None, is_result: false, stream: None, span });
    };
    let Some(inner) = result.first else {
        // An alias that hides both sides, like `std::fmt::Result`.
        check_travels(ty, "an answer")?;
        return Ok(Answer { ok: result.ok, err: Some(result.err), is_result: true, stream: None, span });
    };
    if let TypeOf::Written(err) = &result.err {
        check_travels(err, "an error")?;
    }
    let answer = match stream(inner)? {
        Some(Stream { ok, err: of_items, items }) => {
            match (of_items, items) {
                (Some(of_items), _) => check_same(&result.err, &of_items)?,
                // What `Streaming<T>` fails with when nothing else is said.
                (None, Items::Fallible) => check_same(&result.err, &TypeOf::Written(syn::parse_quote!(Status)))?,
                (None, Items::Plain) => {}
            }
            // The alias says what its error is whatever stands for the stream, which nobody can name.
            let err = match result.err {
                TypeOf::Err(mut alias) => {
                    replace_first(&mut alias, unit);
                    TypeOf::Err(alias)
                }
                written => written,
            };
            Answer { ok, err: Some(err), is_result: true, stream: Some(items), span }
        }
        None => {
            check_travels(inner, "an answer")?;
            Answer { ok: result.ok, err: Some(result.err), is_result: true, stream: None, span }
        }
    };
    Ok(answer)
}

/// Rejects items that fail with another error than the method, as far as words tell.
fn check_same(of_method: &TypeOf, of_items: &TypeOf) -> syn::Result<()> {
    let (TypeOf::Written(of_method), TypeOf::Written(of_items)) = (of_method, of_items) else { return Ok(()) };
    match (last(of_method), last(of_items)) {
        (Some(one), Some(other)) if one.ident != other.ident => {
            let (one, other) = (text::of(of_method), text::of(of_items));
            Err(reject(
                of_method,
                &format!("the method fails with `{one}`, but its items with `{other}`: a call has one type of errors"),
                "write the same type in both places; an enum can hold both",
            ))
        }
        _ => Ok(()),
    }
}

struct Stream {
    ok: TypeOf,
    err: Option<TypeOf>,
    items: Items,
}

/// Reads `impl Stream<Item = T>`, `BoxStream<T>` and `Streaming<T>`.
fn stream(ty: &Type) -> syn::Result<Option<Stream>> {
    let ty = peel(ty);
    if let Type::ImplTrait(imp) = ty {
        let Some(segment) = imp.bounds.iter().find_map(|b| bound(b, "Stream")) else {
            let help = "answer with a type, or with `impl Stream<Item = T>`";
            return Err(reject(ty, "the only `impl` that an answer can be is a stream", help));
        };
        if imp.bounds.iter().any(|b| matches!(b, TypeParamBound::Trait(b) if b.lifetimes.is_some())) {
            return Err(reject(ty, "a stream has one type of items", "remove `for<…>`"));
        }
        return match item_of(&segment.arguments) {
            Some(item) => items(item).map(Some),
            None => Err(reject(ty, "nobody knows what this stream yields", "write `impl Stream<Item = T>`")),
        };
    }
    let Some(segment) = last(ty) else { return Ok(None) };
    let arguments = type_arguments(segment);
    if segment.ident == "BoxStream" {
        if let [item] = arguments[..] {
            return items(item).map(Some);
        }
    }
    if segment.ident == "Streaming" {
        if let [item, ref error @ ..] = arguments[..] {
            check_travels(item, "an item")?;
            let err = error.first().map(|error| TypeOf::Written((*error).clone()));
            return Ok(Some(Stream { ok: TypeOf::Written(item.clone()), err, items: Items::Fallible }));
        }
    }
    Ok(None)
}

/// `T` of `<Item = T>`.
fn item_of(arguments: &PathArguments) -> Option<&Type> {
    let PathArguments::AngleBracketed(brackets) = arguments else { return None };
    brackets.args.iter().find_map(|argument| match argument {
        GenericArgument::AssocType(assoc) if assoc.ident == "Item" => Some(&assoc.ty),
        _ => None,
    })
}

/// Reads what a stream yields.
fn items(item: &Type) -> syn::Result<Stream> {
    check_travels(item, "an item")?;
    Ok(match result(item) {
        None => Stream { ok: TypeOf::Written(item.clone()), err: None, items: Items::Plain },
        Some(result) => Stream { ok: result.ok, err: Some(result.err), items: Items::Fallible },
    })
}

struct ResultType<'a> {
    ok: TypeOf,
    err: TypeOf,
    /// What stands first in the angle brackets.
    first: Option<&'a Type>,
}

/// Reads `Result<T, E>` and its aliases of the same name.
fn result(ty: &Type) -> Option<ResultType<'_>> {
    let ty = peel(ty);
    if !is_named(ty, "Result") {
        return None;
    }
    let arguments = type_arguments(last(ty)?);
    Some(match arguments[..] {
        [ok, err] => {
            let (first, ok) = (Some(ok), TypeOf::Written(ok.clone()));
            ResultType { ok, err: TypeOf::Written(err.clone()), first }
        }
        _ => {
            let first = arguments.first().copied();
            ResultType { ok: TypeOf::Ok(ty.clone()), err: TypeOf::Err(ty.clone()), first }
        }
    })
}

/// Puts another type in the place of the first one in the angle brackets.
fn replace_first(ty: &mut Type, with: Type) {
    let Type::Path(path) = ty else { return };
    let Some(segment) = path.path.segments.last_mut() else { return };
    let PathArguments::AngleBracketed(brackets) = &mut segment.arguments else { return };
    let types = brackets.args.iter_mut().find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    if let Some(first) = types {
        *first = with;
    }
}
