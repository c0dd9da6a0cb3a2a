//! The first of two devices: exposes `add` and `count` through Consul until it is told to stop.
//!
//! ```sh
//! consul agent -dev                    # in a terminal of its own, or export PICOM_REGISTRY=consul://address:port
//! cargo run --example service1
//! cargo run --example service2         # in another terminal, as often as you like
//! ```
//!
//! Start it twice, and calls spread over both. Stop one with Ctrl-C or SIGTERM: it leaves the registry, finishes what
//! runs and ends, and no call fails. Its exit status is 130 or 143, as for any program that these signals end.

use std::process::ExitCode;

use futures::stream;
use picom::{Context, Methods, Picom, Status};

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
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let methods = Methods::new()
        .unary("add", |cx: Context, Add { a, b }: Add| async move {
            println!("add({a}, {b}) for {}", cx.peer().node);
            a.checked_add(b).ok_or_else(|| Status::out_of_range("the sum does not fit 64 bits"))
        })
        .idempotent()
        .server_streaming("count", |_cx: Context, Count { to }: Count| async move { Ok(stream::iter(0..to)) });

    let service1 = Picom::new("service1");
    let exposed = service1.expose(methods).await?;
    println!("service1 listens on port {}: {:?}", exposed.local_addr().port(), exposed.state());

    let signal = picom::shutdown_signal().await?;
    println!("{signal}: leaving");
    service1.end_with(&signal.to_string()).await?;
    println!("service1 has left");
    Ok(ExitCode::from(signal.code()))
}
