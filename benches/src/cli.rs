//! The command line: words in order, and `--name value` or `--name` anywhere.
//!
//! Must never know what a command means. Next: `main`.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

/// Every option of every command.
const OPTIONS: [&str; 11] =
    ["addr", "again", "calls", "connections", "json", "mode", "peers", "reps", "seconds", "server-pid", "with-parent"];

/// Ends the process: it was asked for something that it does not have.
pub(crate) fn refuse(why: impl Display) -> ! {
    eprintln!("picom-bench: {why} (`picom-bench help` says what there is)");
    std::process::exit(2)
}

/// What the command was given.
#[derive(Debug)]
pub(crate) struct Arguments {
    words: std::vec::IntoIter<String>,
    options: HashMap<String, String>,
}

impl Arguments {
    pub(crate) fn parse(from: impl Iterator<Item = String>) -> Self {
        let (mut words, mut options) = (Vec::new(), HashMap::new());
        let mut from = from.peekable();
        while let Some(word) = from.next() {
            match word.strip_prefix("--") {
                Some(option) => {
                    let (name, value) = match option.split_once('=') {
                        Some((name, value)) => (name, value.to_owned()),
                        None => (option, from.next_if(|next| !next.starts_with("--")).unwrap_or_default()),
                    };
                    if !OPTIONS.contains(&name) {
                        refuse(format_args!("there is no option --{name}"));
                    }
                    options.insert(name.to_owned(), value);
                }
                None => words.push(word),
            }
        }
        Self { words: words.into_iter(), options }
    }

    /// The next word, empty when there is none.
    pub(crate) fn next(&mut self) -> String {
        self.words.next().unwrap_or_default()
    }

    /// The next word, split at its commas.
    pub(crate) fn list(&mut self) -> Vec<String> {
        self.next().split(',').filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    }

    pub(crate) fn option<T: FromStr<Err: Display>>(&self, name: &str) -> Option<T> {
        let text = self.options.get(name)?;
        Some(text.parse().unwrap_or_else(|error| refuse(format_args!("--{name} {text}: {error}"))))
    }
}
