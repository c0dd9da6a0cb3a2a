//! Looking at types: which of them mean something to picom, and which cannot travel.
//!
//! Owns recognition by the last word of a path, the only thing a macro can know of a type. It must never build code.
//! Look next at [`signature`](crate::signature) for arguments and [`answer`](crate::answer) for return types.

use syn::visit::{self, Visit};
use syn::{GenericArgument, Lifetime, Path, PathArguments, PathSegment, Type, TypeParamBound};

use crate::errors::reject;
use crate::text;

/// The type without the parentheses and the invisible groups that macros put around it.
pub(crate) fn peel(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => peel(&group.elem),
        Type::Paren(paren) => peel(&paren.elem),
        other => other,
    }
}

/// The last word of a type's path, if it is a path.
pub(crate) fn last(ty: &Type) -> Option<&PathSegment> {
    match peel(ty) {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last(),
        _ => None,
    }
}

/// Whether the last word of the type is this one.
pub(crate) fn is_named(ty: &Type, name: &str) -> bool {
    last(ty).is_some_and(|segment| segment.ident == name)
}

/// Whether the type is a path ending in this word, without anything in angle brackets.
pub(crate) fn is_plain(ty: &Type, name: &str) -> bool {
    last(ty).is_some_and(|segment| segment.ident == name && segment.arguments.is_none())
}

/// The types in the angle brackets of a word.
pub(crate) fn type_arguments(segment: &PathSegment) -> Vec<&Type> {
    match &segment.arguments {
        PathArguments::AngleBracketed(brackets) => {
            let arguments = brackets.args.iter();
            arguments
                .filter_map(|argument| if let GenericArgument::Type(ty) = argument { Some(ty) } else { None })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// The last word of a bound, if it is that of a trait.
pub(crate) fn bound<'a>(bound: &'a TypeParamBound, name: &str) -> Option<&'a PathSegment> {
    match bound {
        TypeParamBound::Trait(bound) => bound.path.segments.last().filter(|segment| segment.ident == name),
        _ => None,
    }
}

/// Whether this is written `Vec<u8>`, which travels as bytes and not as a list of numbers, or `Bytes`, which need not be
/// copied. What it really is, the runtime looks at.
pub(crate) fn is_bytes(ty: &Type) -> bool {
    is_plain(ty, "Bytes")
        || last(ty).is_some_and(|segment| {
            segment.ident == "Vec" && matches!(type_arguments(segment)[..], [item] if is_plain(item, "u8"))
        })
}

/// Rejects types that cannot travel, at the part that cannot. `what` names the role: "an argument", "an answer".
pub(crate) fn check_travels(ty: &Type, what: &str) -> syn::Result<()> {
    let mut finder = Finder { what, found: None };
    finder.visit_type(ty);
    finder.found.map_or(Ok(()), Err)
}

struct Finder<'a> {
    what: &'a str,
    found: Option<syn::Error>,
}

impl Finder<'_> {
    fn found(&mut self, error: syn::Error) {
        // The first, outermost finding explains the ones inside of it.
        self.found.get_or_insert(error);
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_type(&mut self, ty: &'ast Type) {
        let what = self.what;
        match ty {
            Type::Reference(reference) => {
                let help = match peel(&reference.elem) {
                    elem if is_plain(elem, "str") => "write `String`".to_owned(),
                    Type::Slice(slice) => format!("write `Vec<{}>`", text::of(&slice.elem)),
                    elem => format!("write `{}`", text::of(elem)),
                };
                self.found(reject(ty, &format!("{what} must be owned: it travels between processes"), &help));
            }
            Type::ImplTrait(_) => self.found(reject(
                ty,
                &format!("{what} needs one concrete type"),
                "name the type; `impl Stream<Item = T>` is for the answer as a whole or its `Ok`",
            )),
            Type::Infer(_) => self.found(reject(ty, &format!("{what} needs a type"), "write the type")),
            Type::TraitObject(object) if object.bounds.iter().any(|b| bound(b, "Stream").is_some()) => {
                self.found(reject(
                    ty,
                    "a stream is not boxed here",
                    "answer with `impl Stream<Item = T>` or `BoxStream<T>`",
                ));
            }
            _ if is_named(ty, "Streaming") => self.found(reject(
                ty,
                "a stream cannot be part of another type",
                "make `Streaming<T>` the type of the last argument; answer with `impl Stream<Item = T>`",
            )),
            _ => visit::visit_type(self, ty),
        }
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if lifetime.ident != "static" {
            let help = "use an owned type";
            self.found(reject(lifetime, &format!("{} must be owned: it travels between processes", self.what), help));
        }
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.segments.first().is_some_and(|segment| segment.ident == "Self") {
            let help = "write the type's name";
            self.found(reject(path, "`Self` means another type in the client", help));
        }
        visit::visit_path(self, path);
    }
}
