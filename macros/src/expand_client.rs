//! The client: methods that put arguments into a struct and hand it to the channel.
//!
//! Owns `CalculatorClient` and the structs of arguments. It must never send anything itself: every method returns a
//! lazy `Call`. Look next at `picom::private::Channel`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;

use crate::descriptor;
use crate::model::{Arg, Items, Method, Service, at};
use crate::types::is_bytes;

/// The client's type.
pub(crate) fn declaration(service: &Service) -> TokenStream {
    let (ident, client, vis, cfgs) = (&service.ident, service.client(), &service.vis, &service.cfgs);
    let private = service.private();
    let docs = format!("Calls the methods of [`{ident}`]. Cheap to clone.");
    quote! {
        #[doc = #docs]
        #(#cfgs)*
        #[allow(dead_code, reason = "a process that only serves never makes a client")]
        #[derive(::core::clone::Clone, ::core::fmt::Debug)]
        #vis struct #client {
            channel: #private::Channel,
        }
    }
}

/// The structs that hold arguments: one map on the wire, its keys the arguments' names.
pub(crate) fn arguments(service: &Service) -> TokenStream {
    let private = service.private();
    let serde = quote!(#private::serde).to_string().replace(' ', "");
    let bytes = quote!(#private::bytes_field).to_string().replace(' ', "");
    let structs = service.methods.iter().map(|method| {
        let (cfgs, name) = (&method.cfgs, service.arguments(method));
        let fields = method.values().map(|(ident, ty)| {
            let key = ident.unraw().to_string();
            let bytes = is_bytes(ty).then(|| quote!(, with = #bytes));
            quote_spanned!(at(ident.span()) => #[serde(rename = #key #bytes)] #ident: #ty)
        });
        let docs = format!("The arguments of `{}`.", method.ident);
        // Errors about what can be an argument belong to the method.
        let span = method.ident.span();
        let private = service.private_at(span);
        quote_spanned! { at(span) =>
            #(#cfgs)*
            #[doc = #docs]
            #[derive(#private::serde::Serialize, #private::serde::Deserialize)]
            #[serde(crate = #serde)]
            pub struct #name { #(#fields),* }
        }
    });
    quote!(#(#structs)*)
}

/// The client's methods.
pub(crate) fn methods(service: &Service) -> TokenStream {
    let private = service.private();
    let client = service.client();
    let methods = service.methods.iter().map(|one| method(service, one));
    quote! {
        impl #private::TypedClient for #client {
            fn from_channel(channel: #private::Channel) -> Self {
                Self { channel }
            }

            fn descriptor() -> &'static #private::ServiceDescriptor {
                &__PICOM_SERVICE
            }
        }

        impl #client { #(#methods)* }
    }
}

fn method(service: &Service, method: &Method) -> TokenStream {
    let private = service.private();
    let Method { ident, cfgs, shown, .. } = method;
    let docs = method.docs.is_empty().then(|| {
        let docs = format!("Calls `{}`.", ident.unraw());
        quote!(#[doc = #docs])
    });
    let args = method.args.iter().filter_map(|arg| match arg {
        Arg::Value { ident, ty } => Some(quote!(#ident: #ty)),
        Arg::Context => None,
        Arg::Body { ident, item } => Some(quote!(#ident: impl #private::IntoBody<#item>)),
    });
    let arguments = service.arguments(method);
    let values = method.values().map(|(ident, _)| ident);
    let descriptor = descriptor::of_method(method);
    let answer = answer(service, method);
    // Errors about what can be received belong to the return type, and those about the body to its items.
    let private = service.private_at(method.answer.span);
    let output = quote_spanned!(at(method.answer.span) => #private::Call<#arguments, #answer>);
    let call = quote_spanned! { at(method.answer.span) =>
        #private::Channel::call(&self.channel, #descriptor, #arguments { #(#values),* })
    };
    let call = match method.body() {
        Some((body, item)) => {
            let private = service.private_at(item.span());
            quote!(#private::Call::body::<#item, _>(#call, #body))
        }
        None => call,
    };
    quote! {
        #(#cfgs)*
        #(#shown)*
        #docs
        pub fn #ident(&self, #(#args),*) -> #output {
            #call
        }
    }
}

/// What awaiting the call yields.
fn answer(service: &Service, method: &Method) -> TokenStream {
    let answer = &method.answer;
    let (private, span) = (service.private_at(answer.span), at(answer.span));
    let ok = answer.ok.tokens(&private);
    let err = match &answer.err {
        Some(err) => {
            let err = err.tokens(&private);
            quote_spanned!(span => <#err as #private::Fault>::Client)
        }
        None => quote!(#private::Status),
    };
    let kind = match answer.stream {
        None => quote!(Unary),
        Some(Items::Plain | Items::Fallible) => quote!(Items),
    };
    quote_spanned!(span => #private::#kind<#ok, #err>)
}
