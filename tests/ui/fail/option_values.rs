//! Values that are none.

#[picom::service(name = "", prefix = "a.", crate = "1 + 1")]
pub trait One {
    async fn get(&self) -> u8;
}

#[picom::service(name, prefix = 7, crate = picom)]
pub trait Two {
    async fn get(&self) -> u8;
}

#[picom::service(name("a"))]
pub trait Three {
    async fn get(&self) -> u8;
}

fn main() {}
