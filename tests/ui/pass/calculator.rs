//! The five shapes of a method, implemented with plain `async fn`, in a crate that tolerates no warning.
#![deny(warnings, missing_docs, missing_debug_implementations, unreachable_pub, rust_2018_idioms, unused)]

use futures::Stream;
use picom::{Bytes, Context, Status, Streaming};
use serde::{Deserialize, Serialize};

/// An application's error.
#[derive(Debug, Serialize, Deserialize)]
pub enum MathError {
    /// Division by zero.
    ByZero,
}

/// Arithmetic.
#[picom::service]
pub trait Calculator {
    /// Adds two numbers.
    #[rpc(idempotent, deadline = "500ms")]
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status>;

    /// Counts.
    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status>;

    /// Sums a streamed body.
    async fn sum(&self, numbers: Streaming<i64>) -> Result<i64, Status>;

    /// Both directions at once.
    async fn echo(
        &self,
        cx: &Context,
        body: Streaming<Bytes>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status>;

    /// An application error of its own.
    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError>;

    /// Cannot fail in the application.
    async fn now(&self) -> u64;
}

struct Calc {
    steps: Vec<u64>,
}

impl Calculator for Calc {
    async fn add(&self, a: i64, b: i64) -> Result<i64, Status> {
        Ok(a + b)
    }

    async fn count(&self, to: u64) -> Result<impl Stream<Item = u64>, Status> {
        // Borrows from `&self`.
        Ok(futures::stream::iter(self.steps.iter().map(move |step| step * to)))
    }

    async fn sum(&self, mut numbers: Streaming<i64>) -> Result<i64, Status> {
        let mut sum = 0;
        while let Some(number) = numbers.next().await {
            sum += number?;
        }
        Ok(sum)
    }

    async fn echo(
        &self,
        _cx: &Context,
        body: Streaming<Bytes>,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
        Ok(body)
    }

    async fn divide(&self, a: i64, b: i64) -> Result<i64, MathError> {
        a.checked_div(b).ok_or(MathError::ByZero)
    }

    async fn now(&self) -> u64 {
        0
    }
}

fn is_service(_: impl picom::private::Service) {}

async fn call(client: CalculatorClient) -> Result<(), Box<dyn std::error::Error>> {
    let _: i64 = client.add(2, 5).await?;
    let _: Streaming<u64> = client.count(3).await?;
    let _: i64 = client.sum(futures::stream::iter(1..=10)).await?;
    let _: Streaming<Bytes> = client.echo(futures::stream::empty()).await?;
    let _: picom::CallError<MathError> = client.divide(1, 0).await.unwrap_err();
    let _: u64 = client.now().await?;
    Ok(())
}

fn main() {
    is_service(CalculatorServer::new(Calc { steps: vec![1] }));
    let _ = call;
}
