//! Rejections: what is wrong, at which token, and what to write instead.
//!
//! Owns how a compile error looks. It must never know what is allowed (that is [`check`](crate::check) and its
//! helpers). Look next at `tests/ui/fail`, where every rejection is shown.

use proc_macro2::TokenStream;
use quote::ToTokens;

/// An error at `tokens` with a help line.
pub(crate) fn reject(tokens: impl ToTokens, what: &str, help: &str) -> syn::Error {
    syn::Error::new_spanned(tokens, format!("{what}\nhelp: {help}"))
}

/// All errors of one item, so that they are fixed in one go.
#[derive(Default)]
pub(crate) struct Errors(Option<syn::Error>);

impl Errors {
    pub(crate) fn push(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// Keeps the error and goes on without the value.
    pub(crate) fn take<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn into_compile_error(self) -> TokenStream {
        self.0.map(|errors| errors.into_compile_error()).unwrap_or_default()
    }
}
