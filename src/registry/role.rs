//! Roles and how they are asked for: `calc`, `calc@1.2.3`, `calc@^1.2`.
//!
//! Owns the grammar of both. It must never know where records or instances come from. Look next at `versions.rs` and
//! `manifest/table/` for who asks.

use semver::{Version, VersionReq};

use super::{RegistryError, check_service_name};

/// The key of an instance's meta under which its version stands.
pub(crate) const VERSION: &str = "version";

/// A role taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Role<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: Option<Version>,
}

impl<'a> Role<'a> {
    /// The role of a record: its version is behind an `@`, or else in what it says beside.
    pub(crate) fn of(service: &'a str, beside: Option<&str>) -> Self {
        let split = service.split_once('@').filter(|(name, _)| !name.is_empty());
        match split.and_then(|(name, version)| Some((name, Version::parse(version).ok()?))) {
            Some((name, version)) => Self { name, version: Some(version) },
            None => Self { name: service, version: beside.and_then(|version| Version::parse(version).ok()) },
        }
    }
}

/// Whether a program may register this role. A part of a version, as in `calc@1`, is a question and no answer: it would be a role
/// without a version, which no range finds.
#[cfg(feature = "manifest")]
pub(super) fn check(role: &str) -> Result<(), RegistryError> {
    let Some((name, version)) = role.split_once('@').filter(|(name, _)| !name.is_empty()) else { return Ok(()) };
    let bare = version.strip_prefix('v').unwrap_or(version);
    let core = bare.split(['-', '+']).next().unwrap_or(bare);
    let is_number =
        |part: &str| matches!(part, "x" | "X") || !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_meant = core.starts_with(|c: char| c.is_ascii_digit())
        && core.split('.').count() <= 3
        && core.split('.').all(is_number);
    if !is_meant || Version::parse(version).is_ok() || role.len() > MAX_QUERY {
        return Ok(());
    }
    Err(RegistryError::Invalid(format!(
        "role {role:?}: what is registered has a whole version, as in {name}@1.0.0; {version:?} is no semantic version"
    )))
}

/// Which roles are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    /// What was asked for, which also finds the role that is called exactly so.
    pub(crate) text: String,
    /// The role's name.
    pub(crate) name: String,
    wanted: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Any,
    Exactly(Version),
    Range(VersionReq),
    /// What follows the `@` is no version: only the role that is called exactly so.
    Nothing,
}

/// Longest question, in bytes: a name and a range of several parts.
const MAX_QUERY: usize = 256;

impl Query {
    /// Reads `name`, `name@version` or `name@range`.
    pub(crate) fn parse(text: &str) -> Result<Self, RegistryError> {
        let whole = |name: &str, wanted| Self { text: text.to_owned(), name: name.to_owned(), wanted };
        if text.len() > MAX_QUERY {
            return Err(refused(text));
        }
        let Some((name, version)) = text.split_once('@').filter(|(name, _)| !name.is_empty()) else {
            return check_service_name(text).map(|()| whole(text, Wanted::Any));
        };
        check_service_name(name)?;
        if let Ok(version) = Version::parse(version) {
            return Ok(whole(name, Wanted::Exactly(version)));
        }
        match VersionReq::parse(version) {
            Ok(range) => Ok(whole(name, Wanted::Range(range))),
            Err(_) => check_service_name(text).map(|()| whole(name, Wanted::Nothing)).map_err(|_| refused(text)),
        }
    }

    /// The same, but an @ always has a version or a range behind it.
    pub(crate) fn parse_version(text: &str) -> Result<Self, RegistryError> {
        Self::parse(text).and_then(|query| if query.wanted == Wanted::Nothing { Err(refused(text)) } else { Ok(query) })
    }

    /// Whether every version is wanted.
    pub(crate) fn is_any(&self) -> bool {
        self.wanted == Wanted::Any
    }

    /// Whether some versions are wanted, and not others.
    pub(super) fn is_of_versions(&self) -> bool {
        matches!(self.wanted, Wanted::Exactly(_) | Wanted::Range(_))
    }

    /// Whether this is one of those that are wanted.
    pub(crate) fn matches(&self, service: &str, beside: Option<&str>) -> bool {
        if service == self.text {
            return true;
        }
        let role = Role::of(service, beside);
        role.name == self.name
            && match (&self.wanted, role.version) {
                (Wanted::Any, _) => true,
                (Wanted::Exactly(wanted), Some(version)) => version == *wanted,
                (Wanted::Range(range), Some(version)) => range.matches(&version),
                (Wanted::Nothing, _) | (_, None) => false,
            }
    }
}

/// Whether this asks for some versions of a service, so that it is not the name of one.
pub(super) fn names_versions(asked: &str) -> bool {
    Query::parse(asked).is_ok_and(|query| query.is_of_versions())
}

fn refused(text: &str) -> RegistryError {
    let shown: String = text.chars().take(64).collect();
    RegistryError::Invalid(format!(
        "{shown:?} is neither a name, nor a name with a version or a range behind an @, as in calc@1.2.3 or calc@^1.2"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn finds(query: &str, service: &str) -> bool {
        Query::parse(query).unwrap().matches(service, None)
    }

    #[test]
    fn roles_are_found_by_name_version_and_range() {
        for query in ["calc", "calc@1.2.3", "calc@^1.2", "calc@>=1.0, <2", "calc@*", "calc@~1.2.0", "calc@1"] {
            assert!(finds(query, "calc@1.2.3"), "{query}");
        }
        for query in ["cal", "calc@1.2.4", "calc@^2", "calc@<1.2", "other@1.2.3"] {
            assert!(!finds(query, "calc@1.2.3"), "{query}");
        }
        assert!(finds("calc", "calc"));
        assert!(!finds("calc@*", "calc"), "a role without a version is in no range");
        assert!(Query::parse("calc@^1").unwrap().matches("calc", Some("1.5.0")), "a version may stand beside");
        assert!(finds("mail@work", "mail@work"), "an @ may also be part of a name");
        assert!(!finds("calc@^1", "calc@1.3.0-alpha"), "a range does not reach into what is not released yet");
    }

    #[cfg(feature = "manifest")]
    #[test]
    fn a_part_of_a_version_cannot_be_registered() {
        for role in ["calc@1", "calc@1.2", "calc@v1.2.3", "calc@1.x", "calc@01.2.3", "calc@1.2-alpha"] {
            assert!(check(role).unwrap_err().to_string().contains("calc@1.0.0"), "{role}");
        }
        for role in ["calc", "calc@1.2.3", "calc@1.2.3-alpha.1+7", "mail@work", "proxy@10.0.0.1", "@1", "calc@"] {
            check(role).unwrap();
        }
    }

    #[test]
    fn what_is_no_question_is_refused() {
        for query in ["", "a b", "a/b", "calc@^", "calc@>>1", "@1.2.3 x", &"x".repeat(MAX_QUERY + 1)] {
            assert!(Query::parse(query).is_err(), "{query:?}");
        }
        assert!(Query::parse(&format!("{}@{}", "x".repeat(128), "*")).is_ok());
        assert!(Query::parse(&"x".repeat(129)).is_err());
        assert!(Query::parse("mail@work").is_ok() && Query::parse_version("mail@work").is_err());
    }
}
