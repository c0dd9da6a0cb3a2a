//! `#[picom::service]`: a Rust trait or type becomes a service with a server and a typed client.
//!
//! Owns the attribute and nothing else. It must never decide how a call runs or travels: an expansion is plain calls
//! into `picom::private`, and names nothing outside of it. The road is `options` and `check` (source to `model`,
//! with every rejection), then `expand_trait`, `expand_server`, `expand_client` and `descriptor` (model to source).

mod answer;
mod attrs;
mod check;
mod descriptor;
mod errors;
mod expand_client;
mod expand_server;
mod expand_trait;
mod model;
mod options;
mod signature;
mod text;
mod types;
mod units;

use errors::{Errors, reject};
use model::Service;
use options::ServiceOptions;
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Item, ItemImpl, ItemTrait};

/// Makes a service of a trait or of a type.
///
/// On a **trait** it keeps what you wrote (same name, methods, arguments and order; implementors write plain
/// `async fn`) and adds `…Server<S>`, which offers an implementation, and `…Client`, which calls it:
///
/// ```ignore
/// use futures::Stream;
/// use picom::{Context, Status, Streaming};
///
/// #[picom::service]
/// pub trait Calculator {
///     /// Adds two numbers.
///     #[rpc(idempotent, deadline = "500ms")]
///     async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;
///
///     /// Counts up to `to`. The stream may borrow from `&self`.
///     async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status>;
///
///     /// Sums a streamed body. `cx` is optional and absent in the client.
///     async fn sum(&self, cx: &Context, numbers: Streaming<i64>) -> Result<i64, Status>;
/// }
/// ```
///
/// On an **inherent `impl` block** it makes that type a service by itself and adds `…Client`, as visible as the most
/// visible of its methods. On an **`impl Trait for Type`** block it checks the methods and changes nothing.
///
/// The kind of a method follows from its types: a last argument `Streaming<T>` is a streamed body, an answer
/// `impl Stream<Item = T>`, `BoxStream<T>` or `Streaming<T>` (bare, or as the `Ok` of a `Result`) is a stream.
///
/// # Options
///
/// - `name = "…"`: the service's name in its descriptor, instead of the trait's or type's.
/// - `prefix = "…"`: methods are called `prefix.method` on the wire.
/// - `crate = "…"`: the path to picom where it is not `::picom`.
///
/// # Options of a method: `#[rpc(…)]`
///
/// - `name = "…"`: its name on the wire (after the prefix).
/// - `alias = "…"`: another name under which it answers, repeatable, written in full (the prefix is not added).
/// - `idempotent`: running it twice does no harm, so picom may try a lost call again.
/// - `deadline = "500ms"`: the deadline where neither the call nor its context has one; `ns`, `us`, `ms`, `s`, `m`, `h`.
/// - `max_request`, `max_response`: the longest message; `"1MiB"` (`B`, `KiB`, `MiB`, `GiB`) or a number of bytes. A request may be
///   longer than the server's `max_message` so; an answer can only be shorter than the client's.
/// - `max_concurrent = 8`: so many calls of it one server has at once; one more is refused as busy, and another host gets it.
///
/// Documentation, `#[cfg]` and `#[deprecated]` of a method are carried to the client and the descriptor.
#[proc_macro_attribute]
pub fn service(options: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(options.into(), &item.into()).into()
}

fn expand(options: TokenStream, item: &TokenStream) -> TokenStream {
    let parsed = match syn::parse2::<Item>(item.clone()) {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = error.into_compile_error();
            return quote! { #item #error };
        }
    };
    let mut errors = Errors::default();
    let options = ServiceOptions::parse(options, &mut errors);
    match parsed {
        Item::Trait(item) => on_trait(item, &options, errors),
        Item::Impl(item) if item.trait_.is_some() => on_trait_impl(item, &options, errors),
        Item::Impl(item) => on_inherent_impl(item, &options, errors),
        other => {
            errors.push(reject(
                check::head(&other),
                "`#[picom::service]` does not go here",
                "put it on a trait, on an `impl Type` block or on an `impl Trait for Type` block",
            ));
            with_errors(other, errors)
        }
    }
}

fn on_trait(mut item: ItemTrait, options: &ServiceOptions, mut errors: Errors) -> TokenStream {
    let service = check::of_trait(&item, options, &mut errors);
    if errors.is_empty() {
        expand_trait::desugar(&mut item);
        let server = expand_server::of_trait(&service);
        return with_client(&item, &service, &server);
    }
    item.items.iter_mut().for_each(|item| {
        if let syn::TraitItem::Fn(method) = item {
            attrs::strip_rpc(&mut method.attrs);
        }
    });
    // What is left is shown so that one mistake does not make every use of the trait one, too.
    item.attrs.push(syn::parse_quote!(#[allow(async_fn_in_trait)]));
    with_errors(item, errors)
}

fn on_inherent_impl(mut item: ItemImpl, options: &ServiceOptions, mut errors: Errors) -> TokenStream {
    let service = check::of_inherent_impl(&item, options, &mut errors);
    strip_rpc(&mut item);
    match service {
        Some(service) if errors.is_empty() => {
            let server = expand_server::of_type(&service, &item.self_ty);
            with_client(&item, &service, &server)
        }
        _ => with_errors(item, errors),
    }
}

fn on_trait_impl(mut item: ItemImpl, options: &ServiceOptions, mut errors: Errors) -> TokenStream {
    check::of_trait_impl(&item, options, &mut errors);
    strip_rpc(&mut item);
    with_errors(item, errors)
}

fn strip_rpc(item: &mut ItemImpl) {
    for item in &mut item.items {
        if let syn::ImplItem::Fn(method) = item {
            attrs::strip_rpc(&mut method.attrs);
        }
    }
}

/// The item, the types that users name, and everything else inside of `const _`, where it can collide with nothing
/// and still sees whatever the item's own types see.
fn with_client(item: &impl ToTokens, service: &Service, server: &expand_server::Server) -> TokenStream {
    let expand_server::Server { public, hidden } = server;
    let client = expand_client::declaration(service);
    let descriptor = descriptor::of(service);
    let arguments = expand_client::arguments(service);
    let methods = expand_client::methods(service);
    let cfgs = &service.cfgs;
    quote! {
        #item
        #public
        #client
        #(#cfgs)*
        // A process that only serves does not call, and the reverse: neither half is dead code.
        #[allow(dead_code, deprecated, non_camel_case_types, non_snake_case, unreachable_pub, clippy::all)]
        const _: () = {
            #descriptor
            #arguments
            #hidden
            #methods
        };
    }
}

fn with_errors(item: impl ToTokens, errors: Errors) -> TokenStream {
    let errors = errors.into_compile_error();
    quote! { #item #errors }
}
