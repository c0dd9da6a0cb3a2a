//! A handler that cannot move between threads, in an inherent block.

use std::rc::Rc;

pub struct Own;

#[picom::service]
impl Own {
    pub async fn get(&self) -> u8 {
        let shared = Rc::new(1);
        std::future::ready(()).await;
        *shared
    }
}

fn main() {}
