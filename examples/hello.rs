//! The program of the README: one service, one client, two nodes.
//!
//! ```sh
//! PICOM_REGISTRY=memory://hello cargo run --example hello     # or start `consul agent -dev` and leave the variable out
//! ```

use futures::{Stream, stream};
use picom::{Picom, Status};

#[picom::service]
trait Calculator {
    /// Adds two numbers.
    #[rpc(idempotent, deadline = "500ms")]
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;

    /// Counts from 0 up to, not including, `to`.
    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status>;
}

struct Calc;

impl Calculator for Calc {
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status> {
        a.checked_add(b).ok_or_else(|| Status::out_of_range("the sum does not fit 64 bits"))
    }

    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status> {
        Ok(stream::iter(0..to))
    }
}

#[tokio::main]
async fn main() -> Result<(), Status> {
    let service1 = Picom::new("service1");
    service1.expose(CalculatorServer::new(Calc)).await?; // listens and is registered; without Consul it keeps trying

    let service2 = Picom::new("service2");
    let calc: CalculatorClient = service2.client("service1");
    println!("2 + 5 = {}", calc.add(2, 5).await?);
    let mut items = calc.count(3).await?;
    while let Some(item) = items.message().await? {
        println!("item {item}");
    }
    service1.end().await // leaves the registry, finishes what runs, closes
}
