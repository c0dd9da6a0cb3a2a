//! References in answers.

use picom::Status;

#[picom::service]
pub trait Service {
    async fn bare(&self) -> &str;
    async fn inside(&self) -> Result<Vec<&str>, Status>;
    async fn error(&self) -> Result<u8, &'static str>;
}

fn main() {}
