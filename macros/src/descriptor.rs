//! The service's static description, and the numbers by which dispatch knows its methods.
//!
//! Owns the order of methods: the table and the numbers are written side by side under the same conditions, so a
//! method that `#[cfg]` removes leaves no gap. It must never hold behaviour. Look next at `picom::descriptor`.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::Ident;

use crate::model::{Method, Service, TypeOf};
use crate::text;
use crate::types::{is_plain, last, type_arguments};

/// The number of a method, as an expression.
pub(crate) fn number(method: &Method) -> TokenStream {
    let ident = &method.ident;
    quote!((__PicomMethod::#ident as usize))
}

/// The descriptor of a method, as an expression of type `&'static MethodDescriptor`.
pub(crate) fn of_method(method: &Method) -> TokenStream {
    let number = number(method);
    quote!(&__PICOM_METHODS[#number])
}

/// The numbers, the table of methods and the descriptor of the service.
pub(crate) fn of(service: &Service) -> TokenStream {
    let private = service.private();
    let (name, docs) = (&service.name, &service.docs);
    let numbers = service.methods.iter().map(|Method { cfgs, ident, .. }| quote!(#(#cfgs)* #ident));
    let methods = service.methods.iter().map(|method| {
        let cfgs = &method.cfgs;
        let entry = entry(service, method);
        quote!(#(#cfgs)* #entry)
    });
    quote! {
        enum __PicomMethod { #(#numbers,)* }

        static __PICOM_METHODS: &[#private::MethodDescriptor] = &[#(#methods,)*];

        static __PICOM_SERVICE: #private::ServiceDescriptor = #private::ServiceDescriptor {
            name: ::std::borrow::Cow::Borrowed(#name),
            docs: ::std::borrow::Cow::Borrowed(#docs),
            methods: ::std::borrow::Cow::Borrowed(__PICOM_METHODS),
        };
    }
}

fn entry(service: &Service, method: &Method) -> TokenStream {
    let private = service.private();
    let text = |text: &dyn ToTokens| quote!(::std::borrow::Cow::Borrowed(#text));
    let name = text(&service.wire_name(method));
    let aliases = method.options.aliases.iter().map(|alias| text(alias));
    let kind: Ident = method.kind();
    let idempotent = method.options.idempotent.is_some();
    let deadline = option(method.options.deadline.map(|deadline| {
        let (seconds, nanos) = (deadline.as_secs(), deadline.subsec_nanos());
        quote!(::core::time::Duration::new(#seconds, #nanos))
    }));
    let max_request = option(method.options.max_request.map(ToTokens::into_token_stream));
    let max_response = option(method.options.max_response.map(ToTokens::into_token_stream));
    let max_concurrent = option(method.options.max_concurrent.map(ToTokens::into_token_stream));
    let args = method.args.iter().filter_map(|arg| {
        let (name, ty) = match arg {
            crate::model::Arg::Value { ident, ty } => (ident, text::of(ty)),
            _ => return None,
        };
        let (name, ty) = (text(&syn::ext::IdentExt::unraw(name).to_string()), text(&ty));
        Some(quote!(#private::ArgDescriptor { name: #name, ty: #ty }))
    });
    let ok = text(&ok_text(&method.answer.ok));
    let err = text(&method.answer.err.as_ref().map(err_text).unwrap_or_default());
    let docs = text(&method.docs);
    let deprecated = option(method.deprecated.as_ref().map(|note| text(note)));
    quote! {
        #private::MethodDescriptor {
            name: #name,
            aliases: ::std::borrow::Cow::Borrowed(&[#(#aliases),*]),
            kind: #private::Kind::#kind,
            idempotent: #idempotent,
            deadline: #deadline,
            max_request: #max_request,
            max_response: #max_response,
            max_concurrent: #max_concurrent,
            args: ::std::borrow::Cow::Borrowed(&[#(#args),*]),
            ok: #ok,
            err: #err,
            docs: #docs,
            deprecated: #deprecated,
        }
    }
}

fn option(value: Option<TokenStream>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

fn ok_text(ty: &TypeOf) -> String {
    match ty {
        TypeOf::Written(ty) => text::of(ty),
        // The first type in an alias's angle brackets is what it wraps, in every alias anyone writes.
        TypeOf::Ok(alias) | TypeOf::Err(alias) => {
            last(alias).map(type_arguments).and_then(|types| types.first().map(text::of)).unwrap_or_default()
        }
    }
}

/// Empty for `Status`, which is the framework's error and not the application's.
fn err_text(ty: &TypeOf) -> String {
    match ty {
        TypeOf::Written(ty) if is_plain(ty, "Status") => String::new(),
        TypeOf::Written(ty) => text::of(ty),
        TypeOf::Ok(alias) | TypeOf::Err(alias) => format!("{}::Err", text::of(alias)),
    }
}
