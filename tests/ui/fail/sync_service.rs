//! A service that cannot be shared.

use std::cell::Cell;

#[picom::service]
pub trait Service {
    async fn get(&self) -> u8;
}

struct Own(Cell<u8>);

impl Service for Own {
    async fn get(&self) -> u8 {
        self.0.get()
    }
}

fn main() {}
