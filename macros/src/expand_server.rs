//! The server: from the number of a method to the call of the user's code.
//!
//! Owns the implementation of `picom::private::Service`. It must never decode, encode or decide anything itself: that
//! is the runtime's. Look next at `picom::private::Incoming`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::Type;
use syn::spanned::Spanned;

use crate::descriptor;
use crate::model::{Arg, Items, Method, Service, at};

/// The server's parts.
pub(crate) struct Server {
    /// What users name.
    pub(crate) public: TokenStream,
    /// What stands inside of `const _`.
    pub(crate) hidden: TokenStream,
}

/// `CalculatorServer<S>`.
pub(crate) fn of_trait(service: &Service) -> Server {
    let (ident, server, vis, cfgs) = (&service.ident, service.server(), &service.vis, &service.cfgs);
    let docs = format!("Offers an implementation of [`{ident}`] to callers.");
    let public = quote! {
        #[doc = #docs]
        #(#cfgs)*
        #[allow(dead_code, reason = "a process that only calls never makes a server")]
        #vis struct #server<S> {
            service: ::std::sync::Arc<S>,
        }
    };
    let private = service.private();
    let dispatch = dispatch(service, &quote!(<__S as #ident>), &quote!(&*self.service));
    let name = server.to_string();
    let hidden = quote! {
        impl<__S: #ident> #server<__S> {
            /// Offers this implementation.
            pub fn new(service: __S) -> Self {
                Self::from_arc(::std::sync::Arc::new(service))
            }

            /// Offers an implementation that others hold, too: one value can be several services.
            pub fn from_arc(service: ::std::sync::Arc<__S>) -> Self {
                Self { service }
            }
        }

        impl<__S> ::core::clone::Clone for #server<__S> {
            fn clone(&self) -> Self {
                Self { service: ::std::sync::Arc::clone(&self.service) }
            }
        }

        impl<__S> ::core::fmt::Debug for #server<__S> {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Formatter::write_str(f, #name)
            }
        }

        impl<__S: #ident> #private::Service for #server<__S> { #dispatch }
    };
    Server { public, hidden }
}

/// The type itself.
pub(crate) fn of_type(service: &Service, ty: &Type) -> Server {
    let private = service.private();
    let dispatch = dispatch(service, &quote!(<#ty>), &quote!(&*self));
    Server { public: TokenStream::new(), hidden: quote! { impl #private::Service for #ty { #dispatch } } }
}

fn dispatch(service: &Service, ty: &TokenStream, receiver: &TokenStream) -> TokenStream {
    let private = service.private();
    let arms = service.methods.iter().map(|method| arm(service, method, ty, receiver));
    quote! {
        fn descriptor(&self) -> &#private::ServiceDescriptor {
            &__PICOM_SERVICE
        }

        fn call(self: ::std::sync::Arc<Self>, method: usize, mut call: #private::Incoming) -> #private::HandlerFuture {
            match method {
                #(#arms)*
                // The runtime only passes numbers of the descriptor; should it ever not, a caller is told.
                _ => ::std::boxed::Box::pin(async move {
                    #private::fail(call, #private::Status::unimplemented("no such method"));
                }),
            }
        }
    }
}

fn arm(service: &Service, method: &Method, ty: &TokenStream, receiver: &TokenStream) -> TokenStream {
    let (ident, cfgs) = (&method.ident, &method.cfgs);
    let private = service.private_at(ident.span());
    let number = descriptor::number(method);
    // Without arguments whatever came is ignored: nothing, an empty map, or arguments that were removed since.
    let arguments = match method.values().next() {
        Some(_) => {
            let arguments = service.arguments(method);
            quote!(#arguments)
        }
        None => quote!(()),
    };
    let context = method.args.iter().any(|arg| matches!(arg, Arg::Context)).then(|| {
        quote! { let context = ::core::clone::Clone::clone(#private::Incoming::context(&call)); }
    });
    let body = method.body().map(|(_, item)| {
        let private = service.private_at(item.span());
        quote! { let body = #private::Incoming::body::<#item>(&mut call); }
    });
    let values = method.args.iter().map(|arg| match arg {
        Arg::Value { ident, .. } => quote!(arguments.#ident),
        Arg::Context => quote!(&context),
        Arg::Body { .. } => quote!(body),
    });
    let answer = answer(service, method);
    // Errors about what a method's future can do belong to the method.
    quote_spanned! { at(ident.span()) =>
        #(#cfgs)*
        _ if method == #number => ::std::boxed::Box::pin(async move {
            let arguments: #arguments = match #private::Incoming::args(&mut call) {
                ::core::result::Result::Ok(arguments) => arguments,
                ::core::result::Result::Err(status) => return #private::fail(call, status),
            };
            let _ = &arguments;
            #context
            #body
            let answer = #ty::#ident(#receiver, #(#values),*).await;
            #answer
        }),
    }
}

/// Hands the answer to the runtime.
fn answer(service: &Service, method: &Method) -> TokenStream {
    let answer = &method.answer;
    let private = service.private_at(answer.span);
    // Errors about what can be sent belong to the return type.
    let span = at(answer.span);
    let result = if answer.is_result {
        quote_spanned!(span => answer)
    } else {
        let err = match &answer.err {
            Some(err) => err.tokens(&private),
            None => quote!(#private::Status),
        };
        quote_spanned!(span => ::core::result::Result::Ok::<_, #err>(answer))
    };
    match answer.stream {
        None => quote_spanned!(span => #private::answer(call, #result);),
        Some(Items::Plain) => quote_spanned!(span => #private::answer_items(call, #result).await;),
        Some(Items::Fallible) => quote_spanned!(span => #private::answer_try_items(call, #result).await;),
    }
}
