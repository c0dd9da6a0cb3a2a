//! The second of two devices: finds `service1` through Consul, calls it, prints. See `service1` for how to run both.

use picom::{Picom, args};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service2 = Picom::new("service2");

    let (sum, info) = service2.fetch::<i64>("service1", "add", args! { a: 2, b: 5 }).with_info().await?;
    println!("2 + 5 = {sum}, says {} after {:.1?}", info.endpoint(), info.elapsed());

    let mut items = service2.stream::<u64>("service1", "count", args! { to: 3 }).await?;
    while let Some(item) = items.message().await? {
        println!("item {item}");
    }
    Ok(())
}
