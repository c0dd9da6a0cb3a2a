//! An implementation that is no `async fn`.

#[picom::service]
pub trait Service {
    async fn get(&self, a: u8) -> u8;
}

struct Own;

#[picom::service]
impl Service for Own {
    fn get(&self, a: u8) -> impl Future<Output = u8> + Send {
        async move { a }
    }
}

fn main() {}
