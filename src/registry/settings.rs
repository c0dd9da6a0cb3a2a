//! What all registries are told in the same way: the options of a URL, times, switches, and secrets.
//!
//! Owns their grammar, and what hides a secret from `Debug`. It must never know which options there are, nor repeat a value in an
//! error, because it may be a secret. Look next at `url.rs` for the schemes, and at the settings of each registry.

use std::fmt;
use std::time::Duration;

/// Longest name of an unknown option that an error repeats, in characters.
const SHOWN: usize = 20;

/// What is behind the `?` of a URL, `name=value&name=value`, in its order. `%2F` and its like are decoded, so that a value can have
/// any character; a name without `=` has an empty value.
pub(super) fn options(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|option| !option.is_empty()).map(|option| {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        (decoded(name), decoded(value))
    })
}

/// With the bytes that are written as `%` and two hexadecimal digits. What is no such thing stays as it is.
fn decoded(text: &str) -> String {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads `500ms`, `30s`, `5m` or `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    match text[..digits].parse::<u64>() {
        Ok(number) if millis > 0 => Ok(Duration::from_millis(number.saturating_mul(millis))),
        _ => Err("a time is written like 500ms, 30s, 5m or 1h"),
    }
}

/// Reads a switch, which may be only named to be on.
#[cfg(any(feature = "manifest", feature = "broadcast"))]
pub(super) fn switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("a switch is true or false"),
    }
}

/// What to say of an option that there is not, with those that there are.
pub(super) fn unknown(name: &str, there_are: &str) -> String {
    let shown: String = name.chars().take(SHOWN).collect();
    format!("unknown option {shown:?} in the URL; there are {there_are}")
}

/// A secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Hidden<T>(pub(super) T);

impl<T> fmt::Debug for Hidden<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_names_and_decoded_values() {
        let all: Vec<_> = options("ttl=30s&&file=%2Frun%2Fa%20b+c&on&odd=%zz%4&q=a=b").collect();
        let expected = [("ttl", "30s"), ("file", "/run/a b+c"), ("on", ""), ("odd", "%zz%4"), ("q", "a=b")];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(options("a=%ff%c3%bc").next(), Some(("a".to_owned(), "\u{fffd}ü".to_owned())));
        assert_eq!(options("").count(), 0);
    }

    #[test]
    fn times_have_a_unit() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("18446744073709551615h"), Ok(Duration::from_millis(u64::MAX)), "as long as there is");
        for text in ["", "s", "30", "1.5s", "-1s", "30 s", "1d", "18446744073709551616s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Hidden("hush")), "(hidden)");
    }
}
