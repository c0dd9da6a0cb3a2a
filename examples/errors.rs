//! What each failure looks like: one line for a person on call, and a code for a program.
//!
//! ```sh
//! cargo run --example errors
//! ```
//!
//! Every line ends with what matters for trying again: how many attempts there were, and whether the handler may have run.

use std::time::Duration;

use futures::Stream;
use picom::registry::Memory;
use picom::{CallError, Code, Execution, Picom, Status, args};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Overdrawn {
    missing: u64,
}

#[picom::service]
trait Account {
    async fn withdraw(&self, amount: u64) -> Result<u64, Overdrawn>;
    async fn owner(&self, number: u64) -> Result<String, Status>;
    async fn history(&self) -> Result<impl Stream<Item = Result<u64, Status>>, Status>;
    async fn audit(&self) -> Result<(), Status>;
    async fn close(&self) -> Result<(), Status>;
}

struct Bank;

impl Account for Bank {
    async fn withdraw(&self, amount: u64) -> Result<u64, Overdrawn> {
        100_u64.checked_sub(amount).ok_or(Overdrawn { missing: amount.saturating_sub(100) })
    }

    async fn owner(&self, number: u64) -> Result<String, Status> {
        Err(Status::not_found(format!("no account {number}")))
    }

    async fn history(&self) -> Result<impl Stream<Item = Result<u64, Status>>, Status> {
        Ok(futures::stream::iter([Ok(1), Ok(2), Err(Status::data_loss("page 3 is unreadable"))]))
    }

    async fn audit(&self) -> Result<(), Status> {
        std::future::pending().await
    }

    #[allow(clippy::panic, reason = "this is the example of a handler that panics")]
    async fn close(&self) -> Result<(), Status> {
        panic!("a bug in the handler, shown on purpose")
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = Memory::new();
    let bank = Picom::builder("bank").registry(registry.clone()).bind("127.0.0.1").max_message(1 << 20).build()?;
    let exposed = bank.expose(AccountServer::new(Bank)).await?;
    let till = Picom::builder("till").registry(registry).resolve_wait(Duration::from_millis(100)).build()?;
    let account: AccountClient = till.client("bank");

    // An error type of the application arrives as itself, apart from everything that the framework says.
    match account.withdraw(250).await {
        Err(CallError::App(Overdrawn { missing })) => println!("application error\n    {missing} missing"),
        other => return Err(format!("expected the application's error, got {other:?}").into()),
    }

    // A handler that returns a `Status` is quoted, with the place added.
    show("status of a handler", account.owner(7).await, Code::NotFound, Execution::Done)?;

    // Nothing is hidden in the middle of a stream: the items that came are kept, then comes the error.
    let mut history = account.history().await?;
    let failed = loop {
        match history.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    show("within a stream", failed, Code::DataLoss, Execution::Done)?;

    let unknown = till.fetch::<u64>("bank", "withdrow", args! { amount: 1 }).await;
    show("unknown method", unknown, Code::Unimplemented, Execution::Never)?;

    let wrong = till.fetch::<u64>("bank", "withdraw", args! { amount: "much" }).await;
    show("wrong argument", wrong, Code::InvalidArgument, Execution::Never)?;

    let long = till.fetch::<u64>("bank", "owner", args! { number: "9".repeat(2 << 20) }).await;
    show("arguments above the limit", long, Code::InvalidArgument, Execution::Never)?;

    let late = account.audit().timeout(Duration::from_millis(50)).await;
    show("deadline", late, Code::DeadlineExceeded, Execution::Maybe)?;

    // The panic's text stays in the server's log; the connection and its other calls live on.
    std::panic::set_hook(Box::new(|_| {}));
    show("panic of a handler", account.close().await, Code::Internal, Execution::Done)?;

    let nobody = till.fetch::<u64>("bnak", "withdraw", args! { amount: 1 }).await;
    show("unknown service", nobody, Code::Unavailable, Execution::Never)?;

    let address = exposed.local_addr();
    bank.end().await?;
    let gone = till.fetch::<u64>("bank", "withdraw", args! { amount: 1 }).on(address).await;
    show("nobody listens", gone, Code::Unavailable, Execution::Never)?;
    Ok(())
}

/// Prints a failure, and fails itself if it is not the expected one.
fn show<T: std::fmt::Debug>(
    what: &str,
    result: Result<T, Status>,
    code: Code,
    execution: Execution,
) -> Result<(), String> {
    match result {
        Err(status) if status.code() == code && status.execution() == execution => {
            println!("{what}\n    {status}");
            Ok(())
        }
        other => Err(format!("{what}: expected {code}, {execution}, got {other:?}")),
    }
}
