//! Types as text, for descriptors and help lines.
//!
//! Owns how tokens are spaced; the compiler's own spacing differs from version to version. It must never be used to
//! make code. Look next at [`descriptor`](crate::descriptor).

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use quote::ToTokens;

/// The type as one would write it.
pub(crate) fn of(ty: &impl ToTokens) -> String {
    let mut text = String::new();
    write(ty.to_token_stream(), &mut text);
    text
}

fn write(tokens: TokenStream, text: &mut String) {
    let mut after_word = false;
    let mut after_joint = false;
    for token in tokens {
        let mut joint = false;
        let word = matches!(token, TokenTree::Ident(_) | TokenTree::Literal(_));
        if word && after_word {
            text.push(' ');
        }
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::None => ("", ""),
                };
                text.push_str(open);
                write(group.stream(), text);
                text.push_str(close);
            }
            TokenTree::Punct(punct) => {
                joint = punct.spacing() == Spacing::Joint;
                match punct.as_char() {
                    ',' => text.push_str(", "),
                    ';' => text.push_str("; "),
                    '+' => text.push_str(" + "),
                    '=' => text.push_str(" = "),
                    '-' => text.push_str(" -"),
                    // The end of `->`, and not that of angle brackets.
                    '>' if after_joint && text.ends_with('-') => text.push_str("> "),
                    other => text.push(other),
                }
            }
            other => text.push_str(&other.to_string()),
        }
        after_word = word;
        after_joint = joint;
    }
}

#[cfg(test)]
mod tests {
    use super::of;
    use syn::{Type, parse_quote};

    #[test]
    fn types_read_as_written() {
        let types: [(Type, &str); 7] = [
            (parse_quote!(Vec<u8>), "Vec<u8>"),
            (
                parse_quote!(std::collections::HashMap<String, (u8, i64)>),
                "std::collections::HashMap<String, (u8, i64)>",
            ),
            (parse_quote!([u8; 4]), "[u8; 4]"),
            (parse_quote!(Box<dyn Error + Send>), "Box<dyn Error + Send>"),
            (parse_quote!(fn(u8) -> Vec<Vec<u8>>), "fn(u8) -> Vec<Vec<u8>>"),
            (parse_quote!(Cow<'static, str>), "Cow<'static, str>"),
            (parse_quote!(()), "()"),
        ];
        for (ty, text) in types {
            assert_eq!(of(&ty), text);
        }
    }
}
