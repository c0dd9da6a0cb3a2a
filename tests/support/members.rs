//! Members of a manifest, and a stranger who speaks to them in frames.
//!
//! Owns the bytes that a stranger says; they are written out here, not taken from the crate, so that a change of either is
//! noticed. It must never decide what a member has to make of them.

use picom::registry::{Details, Manifest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// A record with nothing special about it.
pub(crate) fn details(port: u16) -> Details {
    Details { port, ..Details::default() }
}

/// A member that listens, and where.
pub(crate) async fn listening(manifest: Manifest) -> (Manifest, String) {
    let manifest = manifest.listen("127.0.0.1:0");
    let addresses = timeout(PATIENCE, manifest.listening()).await.expect("it listens").unwrap();
    (manifest, addresses[0].to_string())
}

/// The hello of a stranger who says that it has a secret, or that it has none, and as whose address it sees the member's.
pub(crate) fn hello(owner: u64, has_secret: bool, seen: Option<[u8; 4]>) -> Vec<u8> {
    let mut hello = b"picom-m\x02".to_vec();
    hello.push(u8::from(has_secret));
    hello.extend(owner.to_be_bytes());
    hello.extend(0xbad_u64.to_be_bytes());
    hello.extend([1; 32]);
    match seen {
        None => hello.push(0),
        Some(octets) => {
            hello.push(4);
            hello.extend(octets);
        }
    }
    hello
}

/// Sends a frame.
pub(crate) async fn say(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    stream.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).await?;
    stream.write_all(frame).await
}

/// The next frame; `None` at the end.
pub(crate) async fn hear(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; timeout(PATIENCE, stream.read_u32()).await.expect("an answer in time").ok()? as usize];
    timeout(PATIENCE, stream.read_exact(&mut frame)).await.expect("the rest in time").ok()?;
    Some(frame)
}

/// Joins as a stranger where there is no secret.
pub(crate) async fn joined(address: &str, owner: u64) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    say(&mut stream, &hello(owner, false, None)).await.unwrap();
    assert!(hear(&mut stream).await.unwrap().starts_with(b"picom-m"));
    say(&mut stream, &[]).await.unwrap();
    assert_eq!(hear(&mut stream).await.unwrap(), [0u8; 0]);
    stream
}
