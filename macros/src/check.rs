//! From source to [`Service`]: what the attribute accepts, and the rejections about items as a whole.
//!
//! Owns the three forms (trait, `impl Type`, `impl Trait for Type`) and names on the wire. It must never write code.
//! Look next at [`signature`] and [`answer`] for single methods.

use std::collections::HashMap;

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{Attribute, Generics, ImplItem, Item, ItemImpl, ItemTrait, Signature, TraitItem, Type, Visibility};

use crate::errors::{Errors, reject};
use crate::model::{Method, Service};
use crate::options::{MethodOptions, ServiceOptions};
use crate::signature::{self, Place};
use crate::types::last;
use crate::{answer, attrs};

const MOVE_HELP: &str = "move it to another impl block";

/// Reads a trait.
pub(crate) fn of_trait(item: &ItemTrait, options: &ServiceOptions, errors: &mut Errors) -> Service {
    if let Some(word) = &item.unsafety {
        errors.push(reject(word, "a service cannot be an `unsafe` trait", "remove `unsafe`"));
    }
    if let Some(word) = &item.auto_token {
        errors.push(reject(word, "a service cannot be an `auto` trait", "remove `auto`"));
    }
    check_generics(&item.generics, "a trait that is a service", errors);
    let mut methods = Vec::new();
    for item in &item.items {
        match item {
            TraitItem::Fn(item) => {
                let place = Place::Trait { has_body: item.default.is_some() };
                methods.extend(method(&item.attrs, &item.sig, place, errors));
            }
            other => errors.push(reject(
                other,
                "a trait that is a service has methods and nothing else",
                "move it to another trait, and make that a supertrait if implementations need it",
            )),
        }
    }
    let service = service(item.ident.clone(), item.vis.clone(), &item.attrs, options, methods);
    check_names(&service, errors);
    service
}

/// Reads an `impl Type` block; `None` if the type is none that can be a service.
pub(crate) fn of_inherent_impl(item: &ItemImpl, options: &ServiceOptions, errors: &mut Errors) -> Option<Service> {
    check_impl(item, errors);
    check_generics(&item.generics, "an impl block that is a service", errors);
    let mut methods = Vec::new();
    let mut vis = Visibility::Inherited;
    for item in &item.items {
        match item {
            ImplItem::Fn(item) => {
                vis = wider(vis, &item.vis);
                methods.extend(method(&item.attrs, &item.sig, Place::Inherent, errors));
            }
            other => {
                errors.push(reject(other, "an impl block that is a service has methods and nothing else", MOVE_HELP))
            }
        }
    }
    let ident = match (last(&item.self_ty), &*item.self_ty) {
        (Some(segment), Type::Path(_)) if segment.arguments.is_none() => segment.ident.clone(),
        _ => {
            let help =
                "use a struct or an enum without parameters; generic services are traits that generic types implement";
            errors.push(reject(&item.self_ty, "this type cannot be a service by itself", help));
            return None;
        }
    };
    let service = service(ident, vis, &item.attrs, options, methods);
    check_names(&service, errors);
    Some(service)
}

/// Checks an `impl Trait for Type` block, of which nothing is generated.
pub(crate) fn of_trait_impl(item: &ItemImpl, options: &ServiceOptions, errors: &mut Errors) {
    check_impl(item, errors);
    let names = [&options.name, &options.prefix].into_iter().flatten().map(ToTokens::to_token_stream);
    for option in names.chain(options.krate.iter().map(ToTokens::to_token_stream)) {
        errors.push(reject(option, "an implementation has no options", "write them on the trait"));
    }
    for item in &item.items {
        let ImplItem::Fn(item) = item else {
            errors.push(reject(item, "an implementation of a service has methods and nothing else", MOVE_HELP));
            continue;
        };
        if let Some(rpc) = item.attrs.iter().find(|attr| attr.path().is_ident("rpc")) {
            errors.push(reject(rpc, "an implementation has no options", "write them on the trait's method"));
        }
        signature::check_head(&item.sig, Place::TraitImpl, errors);
        if item.sig.asyncness.is_some() {
            errors.take(answer::read(&item.sig.output));
        }
    }
}

/// The word that says what kind of item this is, for the error about it.
pub(crate) fn head(item: &Item) -> TokenStream {
    match item {
        Item::Struct(item) => item.struct_token.to_token_stream(),
        Item::Enum(item) => item.enum_token.to_token_stream(),
        Item::Union(item) => item.union_token.to_token_stream(),
        Item::Fn(item) => item.sig.fn_token.to_token_stream(),
        Item::Mod(item) => item.mod_token.to_token_stream(),
        Item::Type(item) => item.type_token.to_token_stream(),
        Item::Const(item) => item.const_token.to_token_stream(),
        Item::Static(item) => item.static_token.to_token_stream(),
        Item::Use(item) => item.use_token.to_token_stream(),
        other => other.to_token_stream(),
    }
}

fn check_impl(item: &ItemImpl, errors: &mut Errors) {
    if let Some(word) = &item.unsafety {
        errors.push(reject(word, "a service cannot be an `unsafe` impl block", "remove `unsafe`"));
    }
    if let Some((Some(bang), ..)) = &item.trait_ {
        errors.push(reject(bang, "a service cannot be a negative impl block", "remove `!`"));
    }
}

fn check_generics(generics: &Generics, what: &str, errors: &mut Errors) {
    if !generics.params.is_empty() {
        let help = "use concrete types; an enum can hold alternatives, and a generic type can implement the trait";
        errors.push(reject(generics, &format!("{what} cannot be generic: callers cannot choose its types"), help));
    }
    if let Some(clause) = &generics.where_clause {
        errors.push(reject(clause, &format!("{what} has no `where` clause"), "remove it"));
    }
}

fn service(
    ident: syn::Ident,
    vis: Visibility,
    attributes: &[Attribute],
    options: &ServiceOptions,
    methods: Vec<Method>,
) -> Service {
    Service {
        picom: options.picom(),
        name: match &options.name {
            Some(name) => name.value(),
            None => syn::ext::IdentExt::unraw(&ident).to_string(),
        },
        ident,
        prefix: options.prefix.as_ref().map(syn::LitStr::value),
        vis,
        docs: attrs::docs(attributes),
        cfgs: attrs::cfgs(attributes),
        methods,
    }
}

/// Reads one method; `None` if its answer was rejected.
fn method(attributes: &[Attribute], sig: &Signature, place: Place, errors: &mut Errors) -> Option<Method> {
    attrs::check(attributes, errors);
    signature::check_head(sig, place, errors);
    let options = MethodOptions::parse(attributes, errors);
    let args = signature::arguments(sig, place, errors);
    let answer = errors.take(answer::read(&sig.output))?;
    Some(Method {
        ident: sig.ident.clone(),
        options,
        docs: attrs::docs(attributes),
        cfgs: attrs::cfgs(attributes),
        shown: attrs::shown(attributes),
        deprecated: attrs::deprecated(attributes),
        args,
        answer,
    })
}

/// Rejects two methods with one name on the wire. Two under different `#[cfg]`s are taken for alternatives; if they
/// are not, the compiler finds two definitions.
fn check_names(service: &Service, errors: &mut Errors) {
    let mut known: HashMap<String, &Method> = HashMap::new();
    for method in &service.methods {
        let own: TokenStream = match &method.options.name {
            Some(name) => name.to_token_stream(),
            None => method.ident.to_token_stream(),
        };
        let own = (service.wire_name(method), own);
        let aliases = method.options.aliases.iter().map(|alias| (alias.value(), alias.to_token_stream()));
        for (name, token) in std::iter::once(own).chain(aliases) {
            let Some(other) = known.insert(name.clone(), method) else { continue };
            if std::ptr::eq(other, method) {
                errors.push(reject(token, &format!("`{name}` is the method's name already"), "remove the alias"));
            } else if other.cfgs.is_empty() || method.cfgs.is_empty() || other.cfgs == method.cfgs {
                let what = format!("`{}` and `{}` are both called `{name}` on the wire", other.ident, method.ident);
                errors.push(reject(token, &what, "give one of them another name"));
            }
        }
    }
}

/// The more visible of the two, as far as the words alone tell.
fn wider(one: Visibility, other: &Visibility) -> Visibility {
    match (&one, other) {
        (Visibility::Public(_), _) | (_, Visibility::Inherited) => one,
        (Visibility::Inherited, _) | (_, Visibility::Public(_)) => other.clone(),
        (Visibility::Restricted(_), Visibility::Restricted(wide)) if wide.path.is_ident("crate") => other.clone(),
        _ => one,
    }
}
