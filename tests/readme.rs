//! What README.md and docs/ say is what is there: programs, links, limits, dependencies.
//!
//! Owns no program: the README shows two examples word for word, and `tests/examples.rs` runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use picom::options;

/// Most lines of a program that the README shows.
const MAX_PROGRAM: usize = 40;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The code blocks in one language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("\n```{language}\n");
    text.split(&open).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// An example without its header.
fn program(name: &str) -> String {
    let text = read(&format!("examples/{name}.rs"));
    let code: Vec<_> = text.lines().skip_while(|line| line.starts_with("//!")).collect();
    code.join("\n").trim().to_owned()
}

#[test]
fn the_programs_of_the_readme_are_examples_and_short() {
    let readme = read("README.md");
    let shown = blocks(&readme, "rust");
    assert_eq!(shown.len(), 2);
    for (shown, name) in shown.into_iter().zip(["hello", "by_name"]) {
        assert_eq!(shown.trim(), program(name), "the README shows another program than examples/{name}.rs");
        assert!(shown.lines().count() < MAX_PROGRAM, "{name} has {} lines", shown.lines().count());
    }
}

#[test]
fn how_calls_are_tried_again_is_shown_as_it_compiles() {
    let (readme, guide) = (read("README.md"), read("src/lib.rs"));
    let block = blocks(&readme, "rust,ignore").into_iter().find(|block| block.contains(".hedge()"));
    let lines: Vec<_> =
        block.expect("the README shows it").lines().map(|line| line.split(" //").next().unwrap().trim()).collect();
    assert!(lines.len() > 2);
    for line in lines {
        assert!(
            guide.contains(&format!("\n//! {line}")),
            "the guide in src/lib.rs, which is compiled, has no {line:?}"
        );
    }
}

#[test]
fn links_lead_somewhere_and_to_every_example() {
    for (file, folder) in [("README.md", ""), ("docs/architecture.md", "docs/"), ("docs/protocol.md", "docs/")] {
        for link in read(file).split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let is_elsewhere = link.contains("://") || link.starts_with('#');
            assert!(is_elsewhere || path(&format!("{folder}{link}")).exists(), "{file} links to {link}");
        }
    }
    let readme = read("README.md");
    for example in std::fs::read_dir(path("examples")).unwrap() {
        let link = format!("](examples/{})", example.unwrap().file_name().to_str().unwrap());
        assert!(readme.contains(&link), "README.md has no link {link}");
    }
}

#[test]
fn limits_and_defaults_are_the_ones_in_the_code() {
    let time = |time: Duration| match time.subsec_millis() {
        0 => format!("{} s", time.as_secs()),
        _ => format!("{} ms", time.as_millis()),
    };
    let bytes = |bytes: usize| match bytes {
        mib if mib % (1 << 20) == 0 => format!("{} MiB", mib >> 20),
        kib => format!("{} KiB", kib >> 10),
    };
    let number = |number: usize| match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{thousands},{:03}", number % 1000),
    };
    let window = |window: u32| bytes(usize::try_from(window).unwrap());
    let rows = [
        ("retries", options::RETRIES.to_string()),
        ("deadline", time(options::DEADLINE)),
        ("stream_idle", time(options::STREAM_IDLE)),
        ("resolve_wait", time(options::RESOLVE_WAIT)),
        ("pick_wait", time(options::PICK_WAIT)),
        ("connect_timeout", time(options::CONNECT_TIMEOUT)),
        ("handshake_timeout", time(options::HANDSHAKE_TIMEOUT)),
        ("max_message", bytes(options::MAX_MESSAGE)),
        ("collect_limit", number(options::COLLECT_LIMIT)),
        ("max_calls", number(usize::from(options::MAX_CALLS))),
        ("max_connections_per_endpoint", number(options::MAX_CONNECTIONS_PER_ENDPOINT)),
        ("max_running", number(options::MAX_RUNNING)),
        ("max_assembly", bytes(options::MAX_ASSEMBLY)),
        ("stream_window", window(options::STREAM_WINDOW)),
        ("connection_window", window(options::CONNECTION_WINDOW)),
        ("max_connections", number(options::MAX_CONNECTIONS)),
        ("max_connections_per_peer", number(options::MAX_CONNECTIONS_PER_PEER)),
        ("max_handshakes", number(options::MAX_HANDSHAKES)),
        ("drain_delay", time(options::DRAIN_DELAY)),
        ("drain_timeout", time(options::DRAIN_TIMEOUT)),
    ];
    let architecture = read("docs/architecture.md");
    for (option, default) in &rows {
        let row = format!("\n| `{option}` | {default} | ");
        assert!(architecture.contains(&row), "docs/architecture.md has no row {row:?}");
    }
    // Those that are no options of a node, but limits all the same.
    let fixed = [
        format!("| attempts of one call | {} |", options::MAX_ATTEMPTS),
        format!("{} at the client, {} at", time(options::CLIENT_IDLE_CLOSE), time(options::SERVER_IDLE_CLOSE)),
    ];
    for text in &fixed {
        assert!(architecture.contains(text), "docs/architecture.md does not say {text:?}");
    }
    let constants = read("src/options.rs").matches("\npub const ").count();
    assert_eq!(constants, rows.len() + 3, "a constant of src/options.rs is not checked here");
}

#[test]
fn every_dependency_has_its_reason() {
    let (manifest, architecture) = (read("Cargo.toml"), read("docs/architecture.md"));
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names: Vec<_> = dependencies.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    assert!(names.len() > 5);
    for name in &names {
        assert!(architecture.contains(&format!("\n| `{name}` | ")), "docs/architecture.md gives no reason for {name}");
    }
}
