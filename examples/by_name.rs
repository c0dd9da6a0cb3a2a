//! The same as `hello` without a trait: methods and calls by name.
//!
//! ```sh
//! PICOM_REGISTRY=memory://by-name cargo run --example by_name     # or start `consul agent -dev` and leave the variable out
//! ```

use futures::stream;
use picom::{Context, Methods, Picom, Status, args};

#[derive(serde::Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

#[derive(serde::Deserialize)]
struct Count {
    to: u64,
}

#[tokio::main]
async fn main() -> Result<(), Status> {
    let methods = Methods::new()
        .unary("add", |_cx: Context, Add { a, b }: Add| async move {
            a.checked_add(b).ok_or_else(|| Status::out_of_range("the sum does not fit 64 bits"))
        })
        .idempotent()
        .server_streaming("count", |_cx: Context, Count { to }: Count| async move { Ok(stream::iter(0..to)) });
    let service1 = Picom::new("service1");
    service1.expose(methods).await?;

    let service2 = Picom::new("service2");
    let sum: i64 = service2.fetch("service1", "add", args! { a: 2, b: 5 }).await?;
    println!("2 + 5 = {sum}");
    let items: Vec<u64> = service2.fetch("service1", "count", args! { to: 3 }).multiple().await?;
    println!("items {items:?}");
    service1.end().await
}
