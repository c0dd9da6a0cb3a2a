//! The options of `#[picom::service(…)]` and `#[rpc(…)]`.
//!
//! Owns their names, values and the errors about them. It must never look at the item they stand on. Look next at
//! [`model`](crate::model), which carries them, and at [`units`] for durations and sizes.

use std::time::Duration;

use proc_macro2::TokenStream;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::{Attribute, Ident, Lit, LitStr, Meta, Path, Token};

use crate::errors::{Errors, reject};
use crate::units;

const SERVICE_HELP: &str = "the options are `name = \"…\"`, `prefix = \"…\"` and `crate = \"…\"`";
const METHOD_HELP: &str = "the options are `name = \"…\"`, `alias = \"…\"`, `idempotent`, `deadline = \"500ms\"`, \
                           `max_request = \"1MiB\"`, `max_response = \"1MiB\"` and `max_concurrent = 8`";
const NAME_HELP: &str = "a name has at least one character, and neither blanks nor control characters";

/// What stands in `#[picom::service(…)]`.
#[derive(Default)]
pub(crate) struct ServiceOptions {
    pub(crate) name: Option<LitStr>,
    pub(crate) prefix: Option<LitStr>,
    pub(crate) krate: Option<Path>,
}

impl ServiceOptions {
    pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Self {
        let mut options = Self::default();
        let entries = errors.take(Punctuated::<Entry, Token![,]>::parse_terminated.parse2(tokens)).unwrap_or_default();
        for entry in &entries {
            errors.take(options.set(entry));
        }
        options
    }

    fn set(&mut self, entry: &Entry) -> syn::Result<()> {
        match entry.key.to_string().as_str() {
            "name" => entry.once(&mut self.name, SERVICE_HELP, Entry::name),
            "prefix" => entry.once(&mut self.prefix, SERVICE_HELP, Entry::prefix),
            "crate" => entry.once(&mut self.krate, SERVICE_HELP, Entry::path),
            other => Err(reject(&entry.key, &format!("unknown option `{other}`"), SERVICE_HELP)),
        }
    }

    /// The path to picom.
    pub(crate) fn picom(&self) -> Path {
        self.krate.clone().unwrap_or_else(|| syn::parse_quote!(::picom))
    }
}

/// What stands in the `#[rpc(…)]` of one method.
#[derive(Default)]
pub(crate) struct MethodOptions {
    pub(crate) name: Option<LitStr>,
    pub(crate) aliases: Vec<LitStr>,
    pub(crate) idempotent: Option<()>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) max_request: Option<usize>,
    pub(crate) max_response: Option<usize>,
    pub(crate) max_concurrent: Option<usize>,
}

impl MethodOptions {
    pub(crate) fn parse(attrs: &[Attribute], errors: &mut Errors) -> Self {
        let mut options = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("rpc")) {
            let entries = match &attr.meta {
                Meta::Path(_) => continue,
                Meta::List(list) => list.parse_args_with(Punctuated::<Entry, Token![,]>::parse_terminated),
                Meta::NameValue(_) => Err(reject(attr, "options stand in parentheses", "write `#[rpc(…)]`")),
            };
            for entry in &errors.take(entries).unwrap_or_default() {
                errors.take(options.set(entry));
            }
        }
        options
    }

    fn set(&mut self, entry: &Entry) -> syn::Result<()> {
        match entry.key.to_string().as_str() {
            "name" => entry.once(&mut self.name, METHOD_HELP, Entry::name),
            "alias" => {
                let alias = entry.name()?;
                if self.aliases.iter().any(|known| known.value() == alias.value()) {
                    return Err(reject(&alias, "this alias is given twice", "remove one of them"));
                }
                self.aliases.push(alias);
                Ok(())
            }
            "idempotent" => entry.once(&mut self.idempotent, METHOD_HELP, Entry::flag),
            "deadline" => entry.once(&mut self.deadline, METHOD_HELP, Entry::duration),
            "max_request" => entry.once(&mut self.max_request, METHOD_HELP, Entry::size),
            "max_response" => entry.once(&mut self.max_response, METHOD_HELP, Entry::size),
            "max_concurrent" => entry.once(&mut self.max_concurrent, METHOD_HELP, Entry::count),
            kind @ ("unary" | "stream" | "streaming" | "client_streaming" | "server_streaming" | "bidi" | "kind") => {
                Err(reject(
                    &entry.key,
                    &format!("`{kind}`: the kind of a method is not an option"),
                    "it follows from the types: a last argument `Streaming<T>`, an answer `impl Stream<Item = T>`",
                ))
            }
            other => Err(reject(&entry.key, &format!("unknown option `{other}`"), METHOD_HELP)),
        }
    }
}

/// `key` or `key = literal`.
struct Entry {
    key: Ident,
    value: Option<Lit>,
}

impl Parse for Entry {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        // `crate` is a keyword, so any word may stand here.
        let key = input.call(Ident::parse_any)?;
        if input.is_empty() || input.peek(Token![,]) {
            return Ok(Self { key, value: None });
        }
        if !input.peek(Token![=]) {
            let help = "an option is a word, or a word, `=` and a literal; options are separated by commas";
            return Err(syn::Error::new(input.span(), format!("expected `=` or `,` after `{key}`\nhelp: {help}")));
        }
        input.parse::<Token![=]>()?;
        let value = input.parse().map_err(|error| {
            syn::Error::new(error.span(), format!("`{key}` needs a literal\nhelp: as in `{key} = \"…\"`"))
        })?;
        Ok(Self { key, value: Some(value) })
    }
}

impl Entry {
    fn once<T>(&self, slot: &mut Option<T>, help: &str, read: impl FnOnce(&Self) -> syn::Result<T>) -> syn::Result<()> {
        if slot.is_some() {
            return Err(reject(&self.key, &format!("`{}` is given twice", self.key), help));
        }
        *slot = Some(read(self)?);
        Ok(())
    }

    fn flag(&self) -> syn::Result<()> {
        match &self.value {
            None => Ok(()),
            Some(value) => {
                let help = format!("write `{}`, or leave it out", self.key);
                Err(reject(value, &format!("`{}` takes no value", self.key), &help))
            }
        }
    }

    fn string(&self) -> syn::Result<LitStr> {
        match &self.value {
            Some(Lit::Str(text)) => Ok(text.clone()),
            Some(other) => {
                Err(reject(other, &format!("`{}` needs a string", self.key), &format!("as in `{} = \"…\"`", self.key)))
            }
            None => Err(reject(
                &self.key,
                &format!("`{}` needs a value", self.key),
                &format!("as in `{} = \"…\"`", self.key),
            )),
        }
    }

    fn name(&self) -> syn::Result<LitStr> {
        let name = self.string()?;
        let text = name.value();
        if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(reject(&name, "this is no name", NAME_HELP));
        }
        Ok(name)
    }

    fn prefix(&self) -> syn::Result<LitStr> {
        let prefix = self.name()?;
        if prefix.value().ends_with('.') {
            let help = "leave it out; methods are called `prefix.method`";
            return Err(reject(&prefix, "the dot after the prefix is added by picom", help));
        }
        Ok(prefix)
    }

    fn path(&self) -> syn::Result<Path> {
        let text = self.string()?;
        text.parse_with(Path::parse_mod_style)
            .map_err(|_| reject(&text, "this is no path", "write the path to picom, as in `crate = \"::my_picom\"`"))
    }

    fn duration(&self) -> syn::Result<Duration> {
        let text = match &self.value {
            Some(number @ Lit::Int(_)) => {
                return Err(reject(number, "`deadline`: the unit is missing", units::DURATION_HELP));
            }
            _ => self.string()?,
        };
        units::duration(&text.value())
            .map_err(|what| reject(&text, &format!("`{}`: {what}", self.key), units::DURATION_HELP))
    }

    fn count(&self) -> syn::Result<usize> {
        let help = format!("as in `{} = 8`", self.key);
        match &self.value {
            Some(Lit::Int(number)) if number.suffix().is_empty() => match number.base10_parse() {
                Ok(0) => Err(reject(number, &format!("`{}`: a method needs at least one call", self.key), &help)),
                Ok(count) => Ok(count),
                Err(_) => Err(reject(number, &format!("`{}`: this number is too large", self.key), &help)),
            },
            Some(other) => Err(reject(other, &format!("`{}` needs a number", self.key), &help)),
            None => Err(reject(&self.key, &format!("`{}` needs a number", self.key), &help)),
        }
    }

    fn size(&self) -> syn::Result<usize> {
        let (number, token): (String, &dyn quote::ToTokens) = match &self.value {
            Some(Lit::Int(number)) if number.suffix().is_empty() => (number.base10_digits().to_owned(), number),
            Some(Lit::Str(text)) => (text.value(), text),
            Some(other) => {
                return Err(reject(other, &format!("`{}` needs a size", self.key), units::SIZE_HELP));
            }
            None => return Err(reject(&self.key, &format!("`{}` needs a size", self.key), units::SIZE_HELP)),
        };
        units::size(&number).map_err(|what| reject(token, &format!("`{}`: {what}", self.key), units::SIZE_HELP))
    }
}
