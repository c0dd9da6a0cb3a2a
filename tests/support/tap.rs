//! A look at what is asked of a Consul agent.
//!
//! Owns [`Tap`], a TCP proxy that passes every byte on and remembers the requests. It must never change anything. Look next at
//! `consul.rs` for the agent behind it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::consul::Agent;

pub(crate) struct Tap {
    addr: SocketAddr,
    /// What was sent to the agent, one text per connection.
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    // Ends the proxy with the tap.
    _server: JoinSet<()>,
}

impl Tap {
    pub(crate) async fn start(agent: &Agent) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let behind = agent.url().trim_start_matches("http://").to_owned();
        let sent: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = Arc::clone(&sent);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(agent) = TcpStream::connect(&behind).await else { continue };
                connections.spawn(pass(stream, agent, Arc::clone(&all)));
            }
        });
        Self { addr, sent, _server: server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The first lines of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        let lines = self.text();
        lines
            .lines()
            .filter_map(|line| line.strip_suffix(" HTTP/1.1"))
            .map(|line| line.trim_end_matches('?').to_owned())
            .collect()
    }

    /// The first JSON that was sent to this path.
    pub(crate) fn body(&self, path: &str) -> Option<serde_json::Value> {
        let text = self.text();
        let (_, request) = text.split_once(path)?;
        let (_, body) = request.split_once("\r\n\r\n")?;
        serde_json::Deserializer::from_str(body).into_iter().next()?.ok()
    }

    fn text(&self) -> String {
        let sent = self.sent.lock().expect("nobody panics with it");
        sent.iter().map(|bytes| String::from_utf8_lossy(bytes).replace("}PUT ", "}\r\nPUT ")).collect()
    }
}

async fn pass(caller: TcpStream, agent: TcpStream, sent: Arc<Mutex<Vec<Vec<u8>>>>) {
    let number = {
        let mut sent = sent.lock().expect("nobody panics with it");
        sent.push(Vec::new());
        sent.len() - 1
    };
    let (mut caller_reads, mut caller_writes) = caller.into_split();
    let (mut agent_reads, mut agent_writes) = agent.into_split();
    let there = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(len @ 1..) = caller_reads.read(&mut buffer).await {
            sent.lock().expect("nobody panics with it")[number].extend_from_slice(&buffer[..len]);
            if agent_writes.write_all(&buffer[..len]).await.is_err() {
                break;
            }
        }
    };
    // When one side has gone, so has the other.
    tokio::select! {
        () = there => {}
        _ = copy(&mut agent_reads, &mut caller_writes) => {}
    }
}
