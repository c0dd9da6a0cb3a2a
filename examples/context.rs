//! What a chain of calls inherits: the rest of the deadline, and the metadata marked for it.
//!
//! ```sh
//! cargo run --example context
//! ```
//!
//! A program calls `shop`, whose handler calls `stock`. Neither passes anything on by hand.

use std::time::Duration;

use picom::registry::Memory;
use picom::{Code, Context, Picom, Status};

#[picom::service]
trait Shop {
    async fn price(&self, item: String) -> Result<u64, Status>;
}

#[picom::service]
trait Stock {
    async fn count(&self, cx: &Context, item: String) -> Result<u64, Status>;
}

struct ShopOf {
    stock: StockClient,
}

impl Shop for ShopOf {
    async fn price(&self, item: String) -> Result<u64, Status> {
        // This call inherits although the handler takes no context.
        let left = self.stock.count(item).await?;
        Ok(if left > 10 { 5 } else { 9 })
    }
}

struct StockOf;

impl Stock for StockOf {
    async fn count(&self, cx: &Context, item: String) -> Result<u64, Status> {
        let tenant = cx.metadata().get("tenant").unwrap_or("nobody");
        let private = cx.metadata().get("note");
        println!(
            "stock: asked by {} for tenant {tenant}, note {private:?}, deadline {:.0?}",
            cx.peer().node,
            cx.remaining()
        );
        if item == "unicorn" {
            // Looks for it until the caller stops waiting; then this handler is dropped where it stands.
            std::future::pending::<()>().await;
        }
        cx.set_answer_metadata("shelf", "7b").map_err(|error| Status::internal(error.to_string()))?;
        Ok(42)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = Memory::new();
    let node = |name: &str| Picom::builder(name).registry(registry.clone()).bind("127.0.0.1").build();
    let (stock, shop, customer) = (node("stock")?, node("shop")?, node("customer")?);
    stock.expose(StockServer::new(StockOf)).await?;
    shop.expose(ShopServer::new(ShopOf { stock: shop.client("stock") })).await?;

    // `tenant` goes down the chain, `note` only to the shop, and `stock` sees what remains of the two seconds.
    let shop_client: ShopClient = customer.client("shop");
    let price = shop_client
        .price("lamp".to_owned())
        .timeout(Duration::from_secs(2))
        .metadata_inherited("tenant", "acme")
        .metadata("note", "for the shop only")
        .await?;
    println!("customer: the price is {price}");

    // Metadata comes back beside an answer, too.
    let stock_client: StockClient = customer.client("stock");
    let (count, info) = stock_client.count("lamp".to_owned()).with_info().await?;
    println!("customer: {count} left on shelf {:?}, {} attempt", info.metadata().get("shelf"), info.attempts());

    // The deadline ends the whole chain: the shop's own call fails a moment before the customer stops waiting.
    match shop_client.price("unicorn".to_owned()).timeout(Duration::from_millis(200)).await {
        Err(status) if status.code() == Code::DeadlineExceeded => println!("customer: {status}"),
        other => return Err(format!("expected the deadline to pass, got {other:?}").into()),
    }

    shop.end().await?;
    stock.end().await?;
    Ok(())
}
