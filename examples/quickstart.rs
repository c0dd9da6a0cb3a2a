//! A tour in one process: two nodes, calls of every kind, and an error. Needs no set-up.
//!
//! ```sh
//! cargo run --example quickstart
//! PICOM_REGISTRY=consul://127.0.0.1:8500 cargo run --example quickstart     # the same through Consul
//! PICOM_REGISTRY=manifest://local cargo run --example quickstart            # or with no server, by TCP on this machine
//! PICOM_REGISTRY=broadcast:// cargo run --example quickstart                # or by datagrams on loopback
//! PICOM_REGISTRY=fixed://service1=127.0.0.1:4000 cargo run --example quickstart -- 4000     # or at a port of your choice
//! ```

use futures::{Stream, StreamExt, stream};
use picom::{Bytes, CallError, Picom, Status, Streaming, args};
use serde::{Deserialize, Serialize};

#[picom::service]
trait Calculator {
    /// Adds two numbers.
    #[rpc(idempotent, deadline = "500ms")]
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;

    /// A stream down: counts from 0 up to, not including, `to`.
    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status>;

    /// A stream up: sums a streamed body.
    async fn sum(&self, numbers: Streaming<i64>) -> Result<i64, Status>;

    /// Both directions at once: returns each item as it comes.
    async fn echo(&self, body: Streaming<Bytes>) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status>;

    /// Fails with an error of its own.
    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError>;
}

#[derive(Debug, Serialize, Deserialize)]
enum MathError {
    DivisionByZero,
}

struct Calc;

impl Calculator for Calc {
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status> {
        a.checked_add(b).ok_or_else(|| Status::out_of_range("the sum does not fit 64 bits"))
    }

    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status> {
        Ok(stream::iter(0..to))
    }

    async fn sum(&self, mut numbers: Streaming<i64>) -> Result<i64, Status> {
        let mut sum = 0_i64;
        while let Some(number) = numbers.message().await? {
            sum = sum.saturating_add(number);
        }
        Ok(sum)
    }

    async fn echo(&self, body: Streaming<Bytes>) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
        Ok(body)
    }

    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError> {
        a.checked_div(b).ok_or(MathError::DivisionByZero)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = std::env::var("PICOM_REGISTRY").unwrap_or_else(|_| "memory://quickstart".to_owned());
    // Any free one, unless somebody has written down which it is.
    let port = std::env::args().nth(1).map_or(Ok(0), |port| port.parse())?;

    let service1 = Picom::builder("service1").registry_url(&registry).port(port).build()?;
    let exposed = service1.expose(CalculatorServer::new(Calc)).await?;
    println!("service1 listens on port {}, registered in {registry}", exposed.local_addr().port());

    let service2 = Picom::builder("service2").registry_url(&registry).build()?;
    let calc: CalculatorClient = service2.client("service1");

    println!("typed:     add(2, 5) = {}", calc.add(2, 5).await?);
    let sum: i64 = service2.fetch("service1", "add", args! { a: 2, b: 5 }).await?;
    println!("by name:   add(2, 5) = {sum}");

    let items: Vec<u64> = calc.count(5).await?.collect_vec(100).await?;
    println!("down:      count(5) = {items:?}");
    println!("up:        sum(1..=10) = {}", calc.sum(stream::iter(1..=10)).await?);

    let mut echoed = calc.echo(stream::iter(["to", "and", "fro"]).map(Bytes::from)).await?;
    while let Some(bytes) = echoed.message().await? {
        println!("both ways: echo = {}", String::from_utf8_lossy(&bytes));
    }

    match calc.divide(1, 0).await {
        Err(CallError::App(error)) => println!("its error: divide(1, 0) = {error:?}"),
        other => println!("unexpected: {other:?}"),
    }

    service1.end().await?;
    println!("service1 has left");
    Ok(())
}
