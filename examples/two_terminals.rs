//! Two programs that find each other without a server and without any set-up.
//!
//! ```sh
//! cargo run --example two_terminals -- serve
//! cargo run --example two_terminals -- call        # in another terminal, before or after it, as often as you like
//! ```
//!
//! Start it with `serve` twice, and calls spread over both; end one, with Ctrl-C or even `kill -9`, and the other goes on.

use picom::registry::Manifest;
use picom::{Context, Methods, Picom, Status, args};

#[derive(serde::Deserialize)]
struct Greet {
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next().unwrap_or_default();
    // All on this machine who say the same port find each other: the first one listens there, and another takes its place.
    let registry = match arguments.next() {
        Some(port) => Manifest::local_on(port.parse()?),
        None => Manifest::local(),
    };
    match role.as_str() {
        "serve" => serve(registry).await?,
        "call" => call(registry).await?,
        _ => return Err("say `serve` or `call`".into()),
    }
    Ok(())
}

async fn serve(registry: Manifest) -> Result<(), Box<dyn std::error::Error>> {
    let methods = Methods::new()
        .unary("greet", |cx: Context, Greet { name }: Greet| async move {
            println!("greeting {}", cx.peer().node);
            Ok::<_, Status>(format!("hello, {name}, from process {}", std::process::id()))
        })
        .idempotent();
    let node = Picom::builder("greeter").bind("127.0.0.1").registry(registry).build()?;
    let exposed = node.expose(methods).await?;
    println!("greeter listens at {}", exposed.local_addr());
    let signal = picom::shutdown_signal().await?;
    node.end_with(&signal.to_string()).await?;
    println!("{signal}: greeter has left");
    Ok(())
}

async fn call(registry: Manifest) -> Result<(), Status> {
    let node = Picom::builder("caller").registry(registry).build()?;
    println!("waiting for a greeter …");
    let greeter = node.pick("greeter").await?;
    println!("there is one at {}", greeter.addr);
    for name in ["Ada", "Grace"] {
        let greeting: String = node.fetch("greeter", "greet", args! { name: name }).await?;
        println!("{greeting}");
    }
    Ok(())
}
