//! An inherent block of something that is no struct or enum.

pub trait Local {}

#[picom::service]
impl dyn Local {
    pub async fn get(&self) -> u8 {
        0
    }
}

fn main() {}
