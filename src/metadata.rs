//! What a caller sends along with a call, apart from its arguments.
//!
//! Owns [`Metadata`] and its limits. It must never know how it travels: that is `wire/head.rs`, the place to look next.

use std::fmt;

/// Most entries of one [`Metadata`].
pub(crate) const MAX_ENTRIES: usize = 64;

/// Most bytes of one [`Metadata`]: keys, values and three bytes for each entry's lengths. With its head it fits one frame.
pub(crate) const MAX_BYTES: usize = 16 * 1024;

/// Longest key, in bytes: its length shares a byte with a flag.
pub(crate) const MAX_KEY: usize = 127;

/// Bytes that an entry costs beside its key and its value.
const ENTRY_OVERHEAD: usize = 3;

/// A small ordered map of texts that travels with a call. Allocates nothing while it is empty.
///
/// Keys are 1 to 127 lower case ASCII letters, digits, `-`, `_` and `.`. An *inherited* entry is passed on to the calls
/// that are made while the call is handled.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Keys and values, one after the other.
    text: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    key: u8,
    inherited: bool,
    value: u16,
}

impl Entry {
    fn len(self) -> usize {
        usize::from(self.key) + usize::from(self.value)
    }
}

/// Why an entry was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The key is empty, too long or has characters that keys do not have.
    #[error("a metadata key is 1 to {MAX_KEY} lower case letters, digits, '-', '_' and '.'")]
    Key,
    /// There are too many entries.
    #[error("metadata has at most {MAX_ENTRIES} entries")]
    TooMany,
    /// The keys and values are too long together.
    #[error("metadata has at most {MAX_BYTES} bytes")]
    TooLong,
}

impl Metadata {
    /// An empty map.
    pub const fn new() -> Self {
        Self { text: String::new(), entries: Vec::new() }
    }

    /// Adds an entry for this call alone, or replaces the one with this key.
    pub fn insert(&mut self, key: &str, value: &str) -> Result<(), MetadataError> {
        self.put(key, value, false)
    }

    /// Adds an entry that calls made while this one is handled inherit, or replaces the one with this key.
    pub fn insert_inherited(&mut self, key: &str, value: &str) -> Result<(), MetadataError> {
        self.put(key, value, true)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find_map(|(name, value)| (name == key).then_some(value))
    }

    /// Removes an entry and says whether there was one.
    pub fn remove(&mut self, key: &str) -> bool {
        let Some((index, start)) = self.position(key) else { return false };
        let entry = self.entries.remove(index);
        self.text.replace_range(start..start + entry.len(), "");
        true
    }

    /// Keys and values, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spans().map(|(key, value, _)| (key, value))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries that calls made while this one is handled inherit.
    #[must_use]
    pub fn inherited(&self) -> Self {
        let mut inherited = Self::new();
        for (key, value, _) in self.spans().filter(|(_, _, inherited)| *inherited) {
            inherited.push(key, value, true);
        }
        inherited
    }

    /// Keys, values and whether they are inherited.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        let mut rest = self.text.as_str();
        self.entries.iter().map(move |entry| {
            let (key, after) = rest.split_at(usize::from(entry.key));
            let (value, after) = after.split_at(usize::from(entry.value));
            rest = after;
            (key, value, entry.inherited)
        })
    }

    /// Bytes that the entries count towards [`MAX_BYTES`], which is also what they take on the wire.
    pub(crate) fn size(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD * self.entries.len()
    }

    fn put(&mut self, key: &str, value: &str, inherited: bool) -> Result<(), MetadataError> {
        if !is_key(key) {
            return Err(MetadataError::Key);
        }
        let old = self.position(key);
        let freed = old.map_or(0, |(index, _)| self.entries[index].len() + ENTRY_OVERHEAD);
        if old.is_none() && self.entries.len() >= MAX_ENTRIES {
            return Err(MetadataError::TooMany);
        }
        if self.size() - freed + ENTRY_OVERHEAD + key.len() + value.len() > MAX_BYTES {
            return Err(MetadataError::TooLong);
        }
        match old {
            Some((index, start)) => {
                let entry = &mut self.entries[index];
                self.text.replace_range(start + key.len()..start + entry.len(), value);
                // At most `MAX_BYTES`, checked above.
                entry.value = value.len() as u16;
                entry.inherited = inherited;
            }
            None => self.push(key, value, inherited),
        }
        Ok(())
    }

    /// Appends an entry that is known to be new and within the limits.
    fn push(&mut self, key: &str, value: &str, inherited: bool) {
        self.text.push_str(key);
        self.text.push_str(value);
        // At most `MAX_KEY` and `MAX_BYTES`, checked by the caller.
        self.entries.push(Entry { key: key.len() as u8, inherited, value: value.len() as u16 });
    }

    /// Where the entry with this key is, among the entries and in the text.
    fn position(&self, key: &str) -> Option<(usize, usize)> {
        let mut start = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            if &self.text[start..start + usize::from(entry.key)] == key {
                return Some((index, start));
            }
            start += entry.len();
        }
        None
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len())
        && key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn entries_keep_their_order_and_are_replaced_in_place() {
        let mut map = Metadata::new();
        map.insert("tenant", "acme").unwrap();
        map.insert_inherited("trace", "1").unwrap();
        map.insert("empty", "").unwrap();
        map.insert("tenant", "größer").unwrap();
        assert_eq!(map.iter().collect::<Vec<_>>(), [("tenant", "größer"), ("trace", "1"), ("empty", "")]);
        assert_eq!(map.inherited().iter().collect::<Vec<_>>(), [("trace", "1")]);
        assert_eq!((map.get("empty"), map.get("none")), (Some(""), None));
        assert!(map.remove("tenant") && !map.remove("tenant"));
        assert_eq!(map.iter().collect::<Vec<_>>(), [("trace", "1"), ("empty", "")]);
        assert_eq!(format!("{map:?}"), r#"{"trace": "1", "empty": ""}"#);
    }

    #[test]
    fn keys_and_sizes_are_limited() {
        let mut map = Metadata::new();
        for key in ["", "Upper", "with space", "ü", &"k".repeat(MAX_KEY + 1)] {
            assert_eq!(map.insert(key, ""), Err(MetadataError::Key), "{key}");
        }
        assert_eq!(map.insert("k", &"v".repeat(MAX_BYTES - 3)), Err(MetadataError::TooLong));
        map.insert("k", &"v".repeat(MAX_BYTES - 4)).unwrap();
        assert_eq!(map.insert("l", ""), Err(MetadataError::TooLong));
        map.insert("k", "").unwrap();
        for n in 1..MAX_ENTRIES {
            map.insert(&format!("k{n}"), "v").unwrap();
        }
        assert_eq!(map.insert("l", ""), Err(MetadataError::TooMany));
        map.insert("k", "again").unwrap();
        assert_eq!(map.len(), MAX_ENTRIES);
    }
}
