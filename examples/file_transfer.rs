//! Streams a file to a server and back, and checks its SHA-256 on the way.
//!
//! ```sh
//! cargo run --release --example file_transfer            # 64 MiB
//! cargo run --release --example file_transfer -- 1024    # as many MiB as you like
//! ```
//!
//! Neither side ever holds the file in memory: the reader of a stream gives credit for what it has taken, so a slow disk at
//! one end slows down the other end, and 256 KiB per stream is all that waits in between.

use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::Stream;
use picom::registry::Memory;
use picom::{Bytes, Picom, Status, Streaming};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};

/// Bytes that are read from the disk and sent as one item.
const CHUNK: usize = 64 << 10;
const MIB: u64 = 1 << 20;

/// What the server has stored.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    bytes: u64,
    sha256: String,
}

#[picom::service]
trait Files {
    /// Stores the body under this name.
    async fn upload(&self, name: String, body: Streaming<Bytes>) -> Result<Receipt, Status>;

    /// The contents of a stored file.
    async fn download(&self, name: String) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status>;
}

struct Folder(PathBuf);

impl Folder {
    /// A name from outside never leaves the folder.
    fn path(&self, name: &str) -> Result<PathBuf, Status> {
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if plain { Ok(self.0.join(name)) } else { Err(Status::invalid_argument("a name has letters, digits, - and _")) }
    }
}

impl Files for Folder {
    async fn upload(&self, name: String, body: Streaming<Bytes>) -> Result<Receipt, Status> {
        // An error of the body, such as a caller that went away, ends this early: a cut file never gets a receipt.
        store(&self.path(&name)?, body).await
    }

    async fn download(&self, name: String) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
        let file = File::open(self.path(&name)?).await.map_err(|error| on_disk(&error))?;
        Ok(chunks(file))
    }
}

/// Writes a stream to a file; its length and hash are the receipt.
async fn store(path: &Path, mut body: Streaming<Bytes>) -> Result<Receipt, Status> {
    let mut file = BufWriter::new(File::create(path).await.map_err(|error| on_disk(&error))?);
    let (mut bytes, mut hash) = (0, Sha256::new());
    while let Some(chunk) = body.message().await? {
        bytes += chunk.len() as u64;
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(|error| on_disk(&error))?;
    }
    file.flush().await.map_err(|error| on_disk(&error))?;
    Ok(Receipt { bytes, sha256: hex(&hash.finalize()) })
}

/// A file as a stream of chunks.
fn chunks(file: File) -> impl Stream<Item = Result<Bytes, Status>> + Send {
    futures::stream::try_unfold(file, |mut file| async move {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await.map_err(|error| on_disk(&error))?;
        Ok((read > 0).then(|| (Bytes::from(chunk), file)))
    })
}

fn on_disk(error: &std::io::Error) -> Status {
    match error.kind() {
        std::io::ErrorKind::NotFound => Status::not_found("there is no such file"),
        kind => Status::internal(format!("the disk: {kind}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a file whose bytes do not repeat, and its receipt.
async fn make(path: &Path, bytes: u64) -> std::io::Result<Receipt> {
    let mut file = BufWriter::new(File::create(path).await?);
    let (mut written, mut hash, mut block) = (0, Sha256::new(), Sha256::digest(b"picom").to_vec());
    while written < bytes {
        block = block.iter().map(|byte| byte.wrapping_mul(5).wrapping_add(1)).collect();
        block.extend_from_slice(&written.to_le_bytes());
        block.resize(CHUNK.min(usize::try_from(bytes - written).unwrap_or(CHUNK)), 0xa5);
        hash.update(&block);
        file.write_all(&block).await?;
        written += block.len() as u64;
    }
    file.flush().await?;
    Ok(Receipt { bytes, sha256: hex(&hash.finalize()) })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib = std::env::args().nth(1).map_or(Ok(64), |argument| argument.parse::<u64>())?;
    let folder = std::env::temp_dir().join(format!("picom-files-{}", std::process::id()));
    tokio::fs::create_dir(&folder).await?;
    let result = transfer(&folder, mib * MIB).await;
    tokio::fs::remove_dir_all(&folder).await?;
    result
}

async fn transfer(folder: &Path, bytes: u64) -> Result<(), Box<dyn std::error::Error>> {
    let registry = Memory::new();
    let server = Picom::builder("files").registry(registry.clone()).bind("127.0.0.1").build()?;
    server.expose(FilesServer::new(Folder(folder.to_owned()))).await?;
    let client = Picom::builder("client").registry(registry).build()?;
    let files: FilesClient = client.client("files");

    let (source, copy) = (folder.join("source"), folder.join("copy"));
    let made = make(&source, bytes).await?;
    println!("made       {:>5} MiB  sha256 {}", made.bytes / MIB, made.sha256);

    let started = Instant::now();
    let body = Streaming::new(chunks(File::open(&source).await?));
    let uploaded = files.upload("big".to_owned(), body).await?;
    println!("uploaded   {:>5} MiB  sha256 {}  in {:.1?}", uploaded.bytes / MIB, uploaded.sha256, started.elapsed());

    let started = Instant::now();
    let downloaded = store(&copy, files.download("big".to_owned()).await?).await?;
    println!(
        "downloaded {:>5} MiB  sha256 {}  in {:.1?}",
        downloaded.bytes / MIB,
        downloaded.sha256,
        started.elapsed()
    );

    server.end().await?;
    if uploaded == made && downloaded == made { Ok(()) } else { Err("the file has changed on its way".into()) }
}
