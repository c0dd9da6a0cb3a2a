//! The rooms of the source look one way only: an arrow that turns round fails here, with its line.
//!
//! Owns the table of arrows, which `docs/architecture.md` draws, and the house rules that a program can check. It reads
//! source text, so it needs no build and sees code behind every feature.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a room may see of the others.
enum Sees {
    /// These modules of the crate and nothing else.
    Only(&'static [&'static str]),
    /// Anything but these.
    NotThese(&'static [&'static str]),
}
use Sees::{NotThese, Only};

/// Each room, what it sees, and whether it may name tokio.
const ROOMS: [(&str, Sees, bool); 18] = [
    ("metadata", Only(&[]), false),
    ("status", Only(&[]), false),
    ("state", Only(&[]), false),
    ("wire", Only(&["metadata", "status"]), false),
    ("proto", Only(&["metadata", "Metadata", "status", "wire"]), false),
    ("transport", Only(&["metadata", "proto", "status", "wire"]), true),
    ("message", Only(&[]), false),
    ("body", NotThese(&["builder", "client", "node", "registry", "server"]), false),
    ("pack", NotThese(&["builder", "client", "node", "registry", "server"]), true),
    ("streaming", NotThese(&["builder", "client", "node", "registry", "server"]), true),
    ("context", Only(&["metadata"]), true),
    ("registry", NotThese(&["builder", "client", "node", "proto", "server", "transport", "wire"]), true),
    ("sentinel", Only(&[]), true),
    ("balance", Only(&["registry"]), false),
    ("boxcar", Only(&[]), true),
    ("server", NotThese(&["builder", "client", "node", "registry"]), true),
    ("client", NotThese(&["builder", "node", "server"]), true),
    ("methods", NotThese(&["builder", "client", "node", "proto", "registry", "transport", "wire"]), true),
];

/// What expansions may name beside `#private`: the language's own crates, the type at hand, the macro's own hidden names,
/// and clippy's lints.
const EXPANSIONS_MAY_NAME: [&str; 5] = ["core", "std", "Self", "__PicomMethod", "clippy"];

/// Most lines of one file.
const MAX_LINES: usize = 600;
/// Half of the files are shorter than this.
const MAX_MEDIAN: usize = 200;

#[test]
fn arrows_between_rooms_go_one_way() {
    // Tests of a room that have a file of their own may join it with any other.
    let of_rooms = |path: &str| !path.ends_with("/tests.rs") && !path.contains("/tests/");
    let sources = sources("src");
    let rooms = sources.iter().filter(|(path, _)| of_rooms(path));
    let wrong: Vec<_> = rooms.flat_map(|(path, text)| turned(path, text)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn expansions_name_only_what_is_private() {
    let wrong: Vec<_> = sources("macros/src").iter().flat_map(|(path, text)| escaped(path, text)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn files_are_short_and_say_what_they_are_and_nothing_is_unsafe() {
    let files = [sources("src"), sources("macros/src"), sources("benches/src")].concat();
    let mut lengths = Vec::new();
    for (path, text) in &files {
        assert!(text.starts_with("//! "), "{path}: must open with a line of `//!` that says what it is");
        lengths.push(text.lines().count());
        assert!(text.lines().count() <= MAX_LINES, "{path}: has {} lines, more than {MAX_LINES}", text.lines().count());
        for (line, words) in code(text).lines().map(words).enumerate() {
            assert!(!words.contains(&"unsafe"), "{path}:{}: unsafe code", line + 1);
        }
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median < MAX_MEDIAN, "half of the files have {median} lines or more");
}

#[test]
fn a_turned_arrow_is_seen_in_every_spelling() {
    let wrong = [
        ("src/wire/a.rs", "use crate::proto::Config;"),
        ("src/wire/a.rs", "use crate::{metadata, client::{Call, Channel}};"),
        ("src/wire/a.rs", "use super::super::server;"),
        ("src/wire/mod.rs", "fn f() { super::node::start() }"),
        ("src/wire.rs", "pub(crate) use super::{registry, status};"),
        ("src/proto/a/b.rs", "let x = tokio::time::Instant::now();"),
        ("src/proto/a.rs", "use tokio_util::sync::CancellationToken;"),
        ("src/server/a.rs", "use crate::{\n    status,\n    registry,\n};"),
        ("src/client/a.rs", "const S: &str = \"/* \\\" // \"; fn f() { crate::server::x() }"),
        ("src/status.rs", "mod tests { use super::super::wire; }"),
        ("src/registry/a.rs", "const C: char = '\"'; use crate::transport;"),
    ];
    for (path, text) in wrong {
        assert_eq!(turned(path, text).len(), 1, "{path}: {text}");
    }
    let fine = [
        ("src/wire/a.rs", "use crate::{metadata::Metadata, wire::Frame}; use tokio_util::codec::{Decoder, Encoder};"),
        ("src/wire/a.rs", "// use crate::proto;\n/* crate::client */ const S: &str = r#\"crate::server \" tokio\"#;"),
        ("src/proto/a.rs", "use super::server; fn f<'a>(x: &'a str) {}"),
        ("src/proto/a/b.rs", "use super::super::client::Open;"),
        ("src/wire/a.rs", "mod tests {\n use super::super::proto::of_wire; }"),
        ("src/status.rs", "mod tests { use super::*; use super::{Code, Status}; }"),
        ("src/node.rs", "use crate::{client, server, registry};"),
    ];
    for (path, text) in fine {
        assert_eq!(turned(path, text), [""; 0], "{path}: {text}");
    }
    let line = turned("src/server/a.rs", "//! A.\n\nuse crate::status;\nuse crate::registry::Watch;\n");
    assert_eq!(line, ["src/server/a.rs:4: `server` must not see `registry`"]);

    assert_eq!(escaped("a", "quote! { ::tokio::spawn(#x) }"), ["a:1: an expansion names `tokio`"]);
    assert_eq!(escaped("a", "quote!(\n#picom::status::Status)"), ["a:2: an expansion names `#picom::status`"]);
    assert_eq!(escaped("a", "quote! { serde::Serialize }; f::<crate::X>()"), ["a:1: an expansion names `serde`"]);
    let good =
        "quote!(#picom::private); quote_spanned! { s => <#a as #private::Fault>::Client; ::core::x::Y::z(Self::q) }";
    assert_eq!(escaped("a", good), [""; 0]);
}

/// Every Rust file below a folder of the repository, by its path within it.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut folders) = (Vec::new(), vec![root.join(folder)]);
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 10, "{folder} has hardly any source");
    found
}

/// Every arrow in this file that should not be there.
fn turned(path: &str, text: &str) -> Vec<String> {
    let module: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let Some((room, sees, tokio)) = ROOMS.iter().find(|(room, ..)| *room == module[0]) else { return Vec::new() };
    let depth = module.iter().filter(|name| **name != "mod").count();
    let text = code(text);
    let inline = inline_modules(&text);
    let mut wrong = Vec::new();
    let mut say = |at: usize, what: String| wrong.push(format!("{path}:{}: {what}", line_of(&text, at)));
    for (at, word) in word_indices(&text) {
        let rest = &text[at + word.len()..];
        let depth = depth + inline.iter().filter(|module| module.contains(&at)).count();
        let targets = match word {
            "crate" => heads(rest),
            "super" if !text[..at].ends_with("super::") && rest.starts_with("::") => match climbed(rest) {
                (supers, rest) if supers == depth => heads(rest),
                _ => Vec::new(),
            },
            "tokio" if !tokio => {
                say(at, format!("`{room}` must not name tokio"));
                continue;
            }
            "tokio_util" if !tokio && !rest.starts_with("::codec::") => {
                say(at, format!("`{room}` must not name tokio_util, except for its codec"));
                continue;
            }
            _ => continue,
        };
        for target in targets {
            let may = target == *room
                || match sees {
                    Only(these) => these.contains(&target),
                    NotThese(these) => !these.contains(&target),
                };
            if !may {
                say(at, format!("`{room}` must not see `{target}`"));
            }
        }
    }
    wrong
}

/// Where the bodies of `mod name { … }` are.
fn inline_modules(text: &str) -> Vec<Range<usize>> {
    let modules = word_indices(text).into_iter().filter(|(_, word)| *word == "mod");
    let bodies = modules.filter_map(|(at, _)| {
        let head = text[at..].find(['{', ';']).map(|offset| at + offset)?;
        text[head..].starts_with('{').then(|| head..head + body(&text[head..]))
    });
    bodies.collect()
}

/// The length of what the brackets at the beginning of this text hold.
fn body(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// How many `super` there are in a row, the first of which is already read, and what follows.
fn climbed(mut rest: &str) -> (usize, &str) {
    let mut supers = 1;
    while let Some(next) = rest.strip_prefix("::super") {
        supers += 1;
        rest = next;
    }
    (supers, rest)
}

/// The first names of the paths that follow: `::a::b` has one, `::{a::b, c}` has two.
fn heads(rest: &str) -> Vec<&str> {
    let Some(rest) = rest.strip_prefix("::") else { return Vec::new() };
    let Some(group) = rest.strip_prefix('{') else {
        return if rest.starts_with(is_word) { words(rest).into_iter().take(1).collect() } else { Vec::new() };
    };
    let (mut heads, mut depth, mut wanted) = (Vec::new(), 1, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => wanted = true,
            c if wanted && is_word(c) => {
                heads.extend(words(&group[at..]).first());
                wanted = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// Every name in the quoted code of a macro file that an expansion should not use.
fn escaped(path: &str, text: &str) -> Vec<String> {
    let text = code(text.split("#[cfg(test)]").next().unwrap_or_default());
    let mut wrong = Vec::new();
    for quote in quotes(&text) {
        let (start, body) = (quote.start, &text[quote]);
        for (at, word) in word_indices(body) {
            let (before, after) = (&body[..at], &body[at + word.len()..]);
            let is_continued = before.ends_with("::") && !is_absolute(before.trim_end_matches("::"));
            if !after.starts_with("::") || after.starts_with("::<") || is_continued {
                continue;
            }
            let named = if before.ends_with('#') {
                let next = words(after).first().copied().unwrap_or_default();
                if word != "picom" || next == "private" { continue } else { format!("#picom::{next}") }
            } else if EXPANSIONS_MAY_NAME.contains(&word) {
                continue;
            } else {
                word.to_owned()
            };
            wrong.push(format!("{path}:{}: an expansion names `{named}`", line_of(&text, start + at)));
        }
    }
    wrong
}

/// Whether `::` after this begins a path rather than going on with one.
fn is_absolute(before: &str) -> bool {
    !before.ends_with(|c: char| is_word(c) || c == '>')
}

/// Where the bodies of `quote!` and its kin begin and end.
fn quotes(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (at, word) in word_indices(text) {
        let after = &text[at + word.len()..];
        let Some(open) = after.find(['(', '{', '[']).filter(|_| word.contains("quote") && after.starts_with('!'))
        else {
            continue;
        };
        let start = at + word.len() + open;
        // A quote within a quote is part of the outer one.
        if found.last().is_none_or(|last: &Range<usize>| last.end < start) {
            found.push(start..start + body(&text[start..]));
        }
    }
    found
}

/// The text with comments, strings and characters blanked, so that what is left is code at its old place.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(end) = raw_string(rest, at > 0 && is_word(char::from(bytes[at - 1]))) {
            end
        } else if rest.starts_with('"') {
            quoted(rest, '"')
        } else if rest.starts_with('\'') && is_character(rest) {
            quoted(rest, '\'')
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        for byte in &mut out[at..at + len] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += len;
    }
    String::from_utf8(out).unwrap()
}

/// The length of a raw string that begins here.
fn raw_string(rest: &str, within_word: bool) -> Option<usize> {
    let hashes = rest.trim_start_matches('b').strip_prefix('r')?;
    let marks = hashes.len() - hashes.trim_start_matches('#').len();
    if within_word || !hashes[marks..].starts_with('"') {
        return None;
    }
    let open = rest.len() - hashes.len() + marks + 1;
    let close = format!("\"{}", "#".repeat(marks));
    Some(rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len()))
}

/// The length of a literal that begins and ends with this mark.
fn quoted(rest: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == mark && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

/// A character and not a lifetime.
fn is_character(rest: &str) -> bool {
    let mut inside = rest.chars().skip(1);
    inside.next() == Some('\\') || inside.next() == Some('\'')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(text: &str) -> Vec<&str> {
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect()
}

fn word_indices(text: &str) -> Vec<(usize, &str)> {
    let start = text.as_ptr() as usize;
    words(text).into_iter().map(|word| (word.as_ptr() as usize - start, word)).collect()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}
