//! One file per system under test, each an implementation of [`Peer`].
//!
//! Owns the names. Must never know what is measured. Next: `raw`, the practical limit; `picom`, what is measured.

pub(crate) mod moleculer;
pub(crate) mod picom;
pub(crate) mod picom_consul;
pub(crate) mod picom_name;
pub(crate) mod picom_one;
pub(crate) mod picom_two;
pub(crate) mod raw;
pub(crate) mod raw_std;
pub(crate) mod tarpc;
pub(crate) mod tonic;
pub(crate) mod volo;

#[cfg(test)]
mod tests;

use crate::cli::refuse;
use crate::peer::Peer;

/// All of them, in the order in which `all` compares them.
pub(crate) const ALL: &[&str] = &[
    raw_std::NAME,
    raw::Raw::NAME,
    picom::Typed::NAME,
    picom_name::ByName::NAME,
    picom_consul::ThroughConsul::NAME,
    picom_two::Two::NAME,
    picom_one::One::NAME,
    tarpc::Tarpc::NAME,
    tarpc::TarpcMp::NAME,
    tonic::Tonic::NAME,
    tonic::TonicTuned::NAME,
    volo::Volo::NAME,
    moleculer::NAME,
];

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
        picom_consul::ThroughConsul::NAME => visitor.visit::<picom_consul::ThroughConsul>(),
        picom_two::Two::NAME => visitor.visit::<picom_two::Two>(),
        picom_one::One::NAME => visitor.visit::<picom_one::One>(),
        tarpc::Tarpc::NAME => visitor.visit::<tarpc::Tarpc>(),
        tarpc::TarpcMp::NAME => visitor.visit::<tarpc::TarpcMp>(),
        tonic::Tonic::NAME => visitor.visit::<tonic::Tonic>(),
        tonic::TonicTuned::NAME => visitor.visit::<tonic::TonicTuned>(),
        volo::Volo::NAME => visitor.visit::<volo::Volo>(),
        _ => unknown(name),
    }
}

/// Refuses names that are none.
pub(crate) fn check(names: &[String]) {
    if let Some(name) = names.iter().find(|name| !ALL.contains(&name.as_str())) {
        unknown(name);
    }
}

fn unknown(name: &str) -> ! {
    refuse(format_args!("there is no peer {name:?}, but {}", ALL.join(", ")))
}
