//! A handler that cannot move between threads, in an implementation of a trait.

use std::rc::Rc;

#[picom::service]
pub trait Service {
    async fn get(&self) -> u8;
}

struct Own;

impl Service for Own {
    async fn get(&self) -> u8 {
        let shared = Rc::new(1);
        std::future::ready(()).await;
        *shared
    }
}

fn main() {}
