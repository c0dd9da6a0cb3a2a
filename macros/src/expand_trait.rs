//! The trait as it is emitted: what was written, desugared.
//!
//! Owns the rewriting of `async fn` to `impl Future + Send`, so that a handler that cannot move between threads is an
//! error at the handler and not in generated code. It must never add, rename or reorder anything. Look next at
//! [`expand_server`](crate::expand_server).

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Block, Expr, ItemTrait, ReturnType, Stmt, Token, TraitItem, Type, TypeImplTrait, parse_quote, parse_quote_spanned,
};

use crate::attrs;
use crate::model::at;
use crate::types::bound;

/// Rewrites the checked trait in place.
pub(crate) fn desugar(item: &mut ItemTrait) {
    item.supertraits.push(parse_quote!(::core::marker::Send));
    item.supertraits.push(parse_quote!(::core::marker::Sync));
    item.supertraits.push(parse_quote!('static));
    item.colon_token.get_or_insert_with(Default::default);
    for item in &mut item.items {
        let TraitItem::Fn(method) = item else { continue };
        attrs::strip_rpc(&mut method.attrs);
        method.sig.asyncness = None;
        let span = at(method.sig.ident.span());
        let mut output: TokenStream = quote!(());
        if let ReturnType::Type(_, ty) = &mut method.sig.output {
            SendStreams.visit_type_mut(ty);
            output = quote!(#ty);
        }
        // At the method, because that is where the compiler says who asks for `Send`.
        let future = quote_spanned! { span =>
            impl ::core::future::Future<Output = #output> + ::core::marker::Send
        };
        method.sig.output = ReturnType::Type(Token![->](span), Box::new(Type::Verbatim(future)));
        if let Some(body) = &method.default {
            let span = at(body.span());
            // The user wrote an `async fn`; that it is spelled out is our doing.
            method.attrs.push(parse_quote!(#[allow(clippy::manual_async_fn)]));
            let body = Expr::Verbatim(quote_spanned!(span => async move #body));
            method.default = Some(Block { brace_token: Default::default(), stmts: vec![Stmt::Expr(body, None)] });
        }
    }
}

/// Adds `Send` to every `impl Stream`.
struct SendStreams;

impl VisitMut for SendStreams {
    fn visit_type_impl_trait_mut(&mut self, ty: &mut TypeImplTrait) {
        let is_stream = ty.bounds.iter().any(|b| bound(b, "Stream").is_some());
        if is_stream && !ty.bounds.iter().any(|b| bound(b, "Send").is_some()) {
            ty.bounds.push(parse_quote_spanned!(at(ty.span()) => ::core::marker::Send));
        }
        visit_mut::visit_type_impl_trait_mut(self, ty);
    }
}
