//! How two members meet: who they are, and the proof that both know the secret.
//!
//! Owns the first four frames of a connection. The one who dialled says hello and is answered with a hello; then it proves
//! that it knows the secret, and only then the other one does. A proof is an HMAC-SHA256 with the secret over the direction
//! and both hellos, each of which has a fresh random number, so that no proof fits another connection, another member or the
//! other direction. It must never look at anything else before both proofs are right. Look next at `link.rs` for what follows.
//!
//! The frames that follow are proved too, with keys that are made of the same, see `seal.rs`. Nothing is encrypted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::seal::Seal;
use super::settings::Secret;

/// Longest frame before both sides have proved themselves, in bytes.
pub(super) const MAX_JOIN_FRAME: usize = 256;

/// The version of everything that is said on a connection.
const VERSION: u8 = 2;

const MAGIC: &[u8; 7] = b"picom-m";
pub(super) const NONCE: usize = 32;
/// Magic, version, flags, owner, birth, nonce, and the length of the address.
const HEAD: usize = 7 + 1 + 1 + 8 + 8 + NONCE + 1;

/// Why two did not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) why: String,
    /// Somebody has to change a secret or a version: trying again changes nothing.
    pub(super) is_mistake: bool,
}

impl Refusal {
    pub(super) fn mistake(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_mistake: true }
    }
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(why: T) -> Self {
        Self { why: why.into(), is_mistake: false }
    }
}

/// What is said of whoever sends what no member would.
pub(super) const NO_MEMBER: &str = "it speaks something else: it is no member of a manifest";

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) owner: u64,
    /// The random number of the process.
    pub(super) birth: u64,
    pub(super) locked: bool,
    pub(super) nonce: [u8; NONCE],
    /// The address at which the other side is seen.
    pub(super) seen: Option<IpAddr>,
}

impl Hello {
    /// A hello of its own for every connection.
    pub(super) fn new(owner: u64, birth: u64, locked: bool, seen: Option<IpAddr>) -> Result<Self, String> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| format!("this machine has no random numbers: {error}"))?;
        Ok(Self { owner, birth, locked, nonce, seen })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend([VERSION, u8::from(self.locked)]);
        out.extend(self.owner.to_be_bytes());
        out.extend(self.birth.to_be_bytes());
        out.extend(self.nonce);
        match self.seen {
            None => out.push(0),
            Some(IpAddr::V4(address)) => {
                out.push(4);
                out.extend(address.octets());
            }
            Some(IpAddr::V6(address)) => {
                out.push(16);
                out.extend(address.octets());
            }
        }
        out
    }

    pub(super) fn decode(frame: &[u8]) -> Result<Self, Refusal> {
        let no_hello = || Refusal::from(NO_MEMBER);
        let rest = frame.strip_prefix(MAGIC).ok_or_else(no_hello)?;
        match rest.first() {
            Some(&VERSION) => {}
            Some(version) => {
                let why = format!("it speaks version {version} of the manifest, and this one {VERSION}");
                return Err(Refusal::mistake(why));
            }
            None => return Err(no_hello()),
        }
        let (head, address) = frame.split_at_checked(HEAD).ok_or_else(no_hello)?;
        let number = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let seen = match (head[HEAD - 1], address.len()) {
            (0, 0) => None,
            (4, 4) => <[u8; 4]>::try_from(address).ok().map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
            (16, 16) => <[u8; 16]>::try_from(address).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
            _ => return Err(no_hello()),
        };
        let nonce = head.get(25..25 + NONCE).and_then(|nonce| nonce.try_into().ok()).ok_or_else(no_hello)?;
        let (owner, birth) = number(9).zip(number(17)).ok_or_else(no_hello)?;
        Ok(Self { owner, birth, locked: head[8] & 1 == 1, nonce, seen })
    }
}

/// Who proves something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Dialled,
    Answered,
}

/// Both hellos as they were sent, with the secret that is to be known.
pub(super) struct Proofs<'a> {
    pub(super) secret: Option<&'a Secret>,
    pub(super) dialled: &'a [u8],
    pub(super) answered: &'a [u8],
}

impl Proofs<'_> {
    /// What this side sends: nothing where there is no secret.
    pub(super) fn of(&self, side: Side) -> Vec<u8> {
        self.mac(side).map_or_else(Vec::new, |mac| mac.finalize().into_bytes().to_vec())
    }

    /// Whether the other side, which is this one, has proved itself. Takes as long for every wrong proof.
    pub(super) fn is_right(&self, side: Side, proof: &[u8]) -> bool {
        match self.mac(side) {
            Some(mac) => mac.verify_slice(proof).is_ok(),
            None => self.secret.is_none() && proof.is_empty(),
        }
    }

    fn mac(&self, side: Side) -> Option<Hmac<Sha256>> {
        self.mac_of(match side {
            Side::Dialled => b"picom manifest 2, join dialled",
            Side::Answered => b"picom manifest 2, join answered",
        })
    }

    /// What proves the frames that this side sends.
    pub(super) fn seal(&self, side: Side) -> Seal {
        let key = self.mac_of(match side {
            Side::Dialled => b"picom manifest 2, frames dialled",
            Side::Answered => b"picom manifest 2, frames answered",
        });
        Seal::new(key.and_then(|key| Hmac::new_from_slice(&key.finalize().into_bytes()).ok()))
    }

    /// A code with the secret over a purpose and both hellos.
    fn mac_of(&self, purpose: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret?.bytes()).ok()?;
        mac.update(&(purpose.len() as u64).to_be_bytes());
        mac.update(purpose);
        for hello in [self.dialled, self.answered] {
            mac.update(&(hello.len() as u64).to_be_bytes());
            mac.update(hello);
        }
        Some(mac)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::super::settings::Settings;
    use super::*;

    fn secret(text: &str) -> Secret {
        let mut settings = Settings::new();
        settings.set_secret(text.as_bytes().to_vec());
        settings.secret().unwrap().unwrap()
    }

    #[test]
    fn a_hello_survives_its_way() {
        for seen in [None, Some("10.1.2.3".parse().unwrap()), Some("fe80::7".parse().unwrap())] {
            let hello = Hello::new(7, 9, true, seen).unwrap();
            assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
            assert!(hello.encode().len() <= MAX_JOIN_FRAME);
        }
        assert_ne!(
            Hello::new(7, 9, true, None).unwrap(),
            Hello::new(7, 9, true, None).unwrap(),
            "every hello is fresh"
        );
    }

    #[test]
    fn another_version_is_named() {
        let mut hello = Hello::new(7, 9, true, None).unwrap().encode();
        hello[7] = 9;
        let refusal = Hello::decode(&hello).unwrap_err();
        assert!(refusal.why.contains("version 9") && refusal.is_mistake, "{refusal:?}");
    }

    #[test]
    fn a_proof_fits_its_secret_direction_and_connection_only() {
        let (known, other) = (secret("a secret of many bytes"), secret("another secret of bytes"));
        let hellos: Vec<_> = (0..3).map(|n| Hello::new(n, n, true, None).unwrap().encode()).collect();
        let with = |secret, a: usize, b: usize| Proofs { secret, dialled: &hellos[a], answered: &hellos[b] };
        let here = with(Some(&known), 0, 1);
        assert!(here.is_right(Side::Dialled, &here.of(Side::Dialled)));
        assert!(here.is_right(Side::Answered, &here.of(Side::Answered)));
        assert!(!here.is_right(Side::Answered, &here.of(Side::Dialled)), "sent back");
        assert!(!here.is_right(Side::Dialled, &with(Some(&other), 0, 1).of(Side::Dialled)), "another secret");
        assert!(!here.is_right(Side::Dialled, &with(Some(&known), 0, 2).of(Side::Dialled)), "another connection");
        assert!(!here.is_right(Side::Dialled, &with(Some(&known), 1, 0).of(Side::Dialled)), "turned round");
        assert!(!here.is_right(Side::Dialled, &[]) && !here.is_right(Side::Dialled, &here.of(Side::Dialled)[..31]));
        let open = with(None, 0, 1);
        assert!(open.is_right(Side::Dialled, &[]) && !open.is_right(Side::Dialled, &[1]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_hello_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Hello::decode(&bytes);
            let _ = Hello::decode(&[MAGIC.as_slice(), &[VERSION], &bytes].concat());
        }
    }
}
