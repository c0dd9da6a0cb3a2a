//! One file per system under test, each an implementation of [`Peer`].
//!
//! Owns the names. Must never know what is measured. Next: `raw`, the practical limit; `picom`, what is measured.

pub(crate) mod picom;
pub(crate) mod picom_name;
pub(crate) mod raw;
pub(crate) mod raw_std;

use crate::peer::Peer;

/// Something that is done with a peer whose name is known only at run time.
pub(crate) trait Visit {
    type Output;

    fn visit<P: Peer>(self) -> Self::Output;
}

/// Does it with the peer of this name.
pub(crate) fn visit<V: Visit>(name: &str, visitor: V) -> V::Output {
    match name {
        raw::Raw::NAME => visitor.visit::<raw::Raw>(),
        picom::Typed::NAME => visitor.visit::<picom::Typed>(),
        picom_name::ByName::NAME => visitor.visit::<picom_name::ByName>(),
        _ => panic!("there is no peer {name:?}"),
    }
}
