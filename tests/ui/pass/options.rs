//! Every spelling of every option, as the descriptor shows it.
#![deny(warnings)]

use std::time::Duration;

use picom::descriptor::Kind;
use picom::private::TypedClient;
use picom::{Context, Streaming};

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct MathError;

/// First line.
///
/// Third line.
#[doc = concat!("Fou", "rth line.")]
#[picom::service(name = "calc", prefix = "v2.calc", crate = "::picom")]
pub(crate) trait Options {
    /// Adds.
    ///  Indented.
    #[rpc(name = "plus", alias = "add", alias = "v1.add", idempotent, deadline = "500ms")]
    #[rpc(max_request = "1MiB", max_response = 4096, max_concurrent = 8)]
    async fn add(&self, a: Vec<Option<(u8, i64)>>, cx: &Context, b: [u8; 4]) -> Result<i64, MathError>;

    #[rpc()]
    #[deprecated(since = "1.2.0", note = "use `plus`")]
    async fn old(&self) -> std::string::String;

    #[rpc]
    #[deprecated]
    async fn older(&self, body: Streaming<u8>);

    #[rpc(deadline = "7ns")]
    async fn ns(&self);
    #[rpc(deadline = "7us", max_request = "7B", max_response = "7")]
    async fn us(&self);
    #[rpc(deadline = "7s", max_request = "7KiB", max_response = "1GiB")]
    async fn s(&self);
    #[rpc(deadline = "7 m")]
    async fn m(&self);
    #[rpc(deadline = "7h")]
    async fn h(&self);
}

fn main() {
    let service = OptionsClient::descriptor();
    assert_eq!(service.name, "calc");
    assert_eq!(service.docs, "First line.\n\nThird line.\nFourth line.");
    let [add, old, older, ns, us, s, m, h] = &service.methods[..] else { panic!("eight methods") };

    assert_eq!(add.name, "v2.calc.plus");
    assert_eq!(add.aliases[..], ["add", "v1.add"]);
    assert_eq!(add.docs, "Adds.\n Indented.");
    assert!(add.idempotent);
    assert_eq!(add.deadline, Some(Duration::from_millis(500)));
    assert_eq!((add.max_request, add.max_response), (Some(1 << 20), Some(4096)));
    assert_eq!((add.max_concurrent, old.max_concurrent), (Some(8), None));
    let args: Vec<(&str, &str)> = add.args.iter().map(|arg| (&*arg.name, &*arg.ty)).collect();
    assert_eq!(args, [("a", "Vec<Option<(u8, i64)>>"), ("b", "[u8; 4]")]);
    assert_eq!((&*add.ok, &*add.err), ("i64", "MathError"));
    assert_eq!(add.kind, Kind::Unary);
    assert_eq!(add.deprecated, None);

    assert_eq!(old.name, "v2.calc.old");
    assert_eq!(old.deprecated.as_deref(), Some("use `plus`"));
    assert_eq!((&*old.ok, &*old.err), ("std::string::String", ""));
    assert!(!old.idempotent);

    assert_eq!(older.deprecated.as_deref(), Some(""));
    assert_eq!(older.kind, Kind::ClientStreaming);
    assert_eq!(older.ok, "()");

    assert_eq!(ns.deadline, Some(Duration::from_nanos(7)));
    assert_eq!((us.deadline, us.max_request, us.max_response), (Some(Duration::from_micros(7)), Some(7), Some(7)));
    assert_eq!(
        (s.deadline, s.max_request, s.max_response),
        (Some(Duration::from_secs(7)), Some(7 << 10), Some(1 << 30))
    );
    assert_eq!(m.deadline, Some(Duration::from_secs(7 * 60)));
    assert_eq!(h.deadline, Some(Duration::from_secs(7 * 3600)));
    let _ = std::mem::size_of::<OptionsServer<()>>();
}
