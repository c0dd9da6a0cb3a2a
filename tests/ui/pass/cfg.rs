//! Methods that a condition removes vanish everywhere, and the numbers of the others stay consistent.
#![deny(warnings)]
#![allow(unexpected_cfgs)]

use picom::private::TypedClient;

#[picom::service]
pub trait Conditional {
    #[cfg(never)]
    async fn gone(&self, value: Missing) -> Missing;

    #[cfg(not(never))]
    async fn first(&self) -> u8;

    #[cfg_attr(not(never), cfg(never))]
    async fn also_gone(&self) -> Missing;

    /// Alternatives may share a name.
    #[cfg(never)]
    async fn second(&self, value: Missing) -> u8;

    /// Alternatives may share a name.
    #[cfg(not(never))]
    async fn second(&self, value: u16) -> u8;

    #[cfg_attr(not(never), deprecated = "use `second`", doc = "Third.")]
    #[rpc(alias = "troisième")]
    async fn third(&self) -> u8;
}

#[picom::service]
#[cfg(never)]
pub trait Absent {
    async fn absent(&self, value: Missing);
}

#[picom::service]
pub trait Empty {
    #[cfg(never)]
    async fn gone(&self, value: Missing) -> Missing;
}

struct Implementation;

#[picom::service]
impl Conditional for Implementation {
    async fn first(&self) -> u8 {
        1
    }

    async fn second(&self, value: u16) -> u8 {
        value as u8
    }

    async fn third(&self) -> u8 {
        3
    }
}

fn main() {
    let names: Vec<&str> = ConditionalClient::descriptor().methods.iter().map(|method| &*method.name).collect();
    assert_eq!(names, ["first", "second", "third"]);
    assert!(EmptyClient::descriptor().methods.is_empty());
    let _ = ConditionalServer::new(Implementation);
    let _ = |client: ConditionalClient| {
        drop((client.first(), client.second(1)));
    };
}
