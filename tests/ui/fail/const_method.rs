//! A `const` method.

pub struct Own;

#[picom::service]
impl Own {
    pub const fn get(&self) -> u8 {
        0
    }
}

fn main() {}
