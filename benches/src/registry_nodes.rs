//! The nodes of a registry's run, how they are connected, and the count of what goes between them.
//!
//! Owns the names of the runs. Must never look at a clock. Loopback only. Next: `registry_run`.

use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use picom::registry::{Broadcast, Manifest, Registry};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// How many there are.
pub(crate) const NODES: usize = 200;

/// How many services each of them has.
pub(crate) const SERVICES: usize = 2;

/// Every run: which registry, over what, and how it is connected or what is around a datagram.
pub(crate) const RUNS: [&str; 6] = [
    "manifest-memory-star",
    "manifest-memory-chain",
    "manifest-loopback-star",
    "manifest-loopback-chain",
    "broadcast-plain",
    "broadcast-sealed",
];

/// In a chain of stars each has so many members.
const STAR: usize = 10;

/// What fits into a connection in memory, in bytes.
const PIPE: usize = 16 << 10;

/// What went through a node, or past a listener.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    sent: Count,
    received: Count,
}

#[derive(Debug, Default)]
struct Count {
    bytes: AtomicU64,
    /// Writes, reads or datagrams.
    pieces: AtomicU64,
}

impl Count {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.pieces.load(Ordering::Relaxed))
    }
}

/// Bytes and pieces, sent and received.
pub(crate) type Totals = ((u64, u64), (u64, u64));

/// All nodes of a run.
pub(crate) struct Nodes {
    pub(crate) registries: Vec<Arc<dyn Registry>>,
    traffic: Vec<Arc<Traffic>>,
    ether: Option<Ether>,
}

impl Nodes {
    pub(crate) async fn new(run: &str) -> Self {
        match run.split('-').collect::<Vec<_>>()[..] {
            ["manifest", links, shape] => manifest(links == "loopback", shape == "chain").await,
            ["broadcast", seal] => broadcast(seal == "sealed"),
            _ => panic!("{run} is no run of a registry"),
        }
    }

    /// What every node has sent and received so far. Of datagrams everybody gets all, also its own.
    pub(crate) fn traffic(&self) -> Vec<Totals> {
        if let Some(ether) = &self.ether {
            let (bytes, datagrams) = ether.heard.sent.read();
            let each = |total: u64| total / NODES as u64;
            return vec![((each(bytes), each(datagrams)), (bytes, datagrams)); NODES];
        }
        self.traffic.iter().map(|traffic| (traffic.sent.read(), traffic.received.read())).collect()
    }

    /// The lengths of all datagrams so far, sorted.
    pub(crate) fn datagrams(&self) -> Vec<usize> {
        let Some(ether) = &self.ether else { return Vec::new() };
        let mut lengths = ether.lengths.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lengths.sort_unstable();
        lengths
    }
}

async fn manifest(loopback: bool, chain: bool) -> Nodes {
    let members: Vec<Manifest> = (0..NODES).map(|_| Manifest::new()).collect();
    let traffic: Vec<Arc<Traffic>> = members.iter().map(|_| Arc::default()).collect();
    for n in 1..NODES {
        let to = match n % STAR {
            _ if !chain => 0,
            0 => n - STAR,
            place => n - place,
        };
        let (dialled, answered) = (Counted::of(&traffic[n]), Counted::of(&traffic[to]));
        if loopback {
            let (one, other) = connection().await;
            members[n].attach(dialled.through(one), true).expect("it runs");
            members[to].attach(answered.through(other), false).expect("it runs");
        } else {
            let (one, other) = tokio::io::duplex(PIPE);
            members[n].attach(dialled.through(one), true).expect("it runs");
            members[to].attach(answered.through(other), false).expect("it runs");
        }
    }
    let registries = members.into_iter().map(|member| Arc::new(member) as Arc<dyn Registry>).collect();
    Nodes { registries, traffic, ether: None }
}

/// Both ends of a connection, as members make them.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (one, (other, _)) = (one.expect("loopback connects"), other.expect("loopback connects"));
    for end in [&one, &other] {
        end.set_nodelay(true).expect("an option of every connection");
    }
    (one, other)
}

fn broadcast(sealed: bool) -> Nodes {
    // Nobody else uses the port while this one is bound to it.
    let reserved = StdSocket::bind("127.77.77.77:0").expect("all of 127.0.0.0/8 is loopback");
    let port = reserved.local_addr().expect("it is bound").port();
    let address = SocketAddr::from(([127, 255, 255, 255], port));
    let node = |_| {
        let registry = Broadcast::to(&address.to_string()).expect("a broadcast address");
        let registry = if sealed { registry.key([7; 32]).expect("a key of 32 bytes") } else { registry };
        Arc::new(registry) as Arc<dyn Registry>
    };
    let ether = Ether::listen(address, reserved);
    Nodes { registries: (0..NODES).map(node).collect(), traffic: Vec::new(), ether: Some(ether) }
}

/// One more who hears every datagram, and only counts.
struct Ether {
    heard: Arc<Traffic>,
    lengths: Arc<Mutex<Vec<usize>>>,
    _reserved: StdSocket,
}

impl Ether {
    fn listen(address: SocketAddr, reserved: StdSocket) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.set_recv_buffer_size(4 << 20).expect("an option");
        socket.set_nonblocking(true).expect("an option");
        socket.bind(&SockAddr::from(address)).expect("the address is shared");
        let socket = UdpSocket::from_std(socket.into()).expect("a runtime");
        let (heard, lengths) = (Arc::<Traffic>::default(), Arc::<Mutex<Vec<usize>>>::default());
        let (count, list) = (Arc::clone(&heard), Arc::clone(&lengths));
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((len, _)) = socket.recv_from(&mut buffer).await {
                count.sent.add(len);
                list.lock().unwrap_or_else(PoisonError::into_inner).push(len);
            }
        });
        Self { heard, lengths, _reserved: reserved }
    }
}

/// One end of a connection, whose bytes are counted for a node.
struct Counted<I> {
    io: I,
    traffic: Arc<Traffic>,
}

impl Counted<()> {
    fn of(traffic: &Arc<Traffic>) -> Self {
        Self { io: (), traffic: Arc::clone(traffic) }
    }

    fn through<I>(self, io: I) -> Counted<I> {
        Counted { io, traffic: self.traffic }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.traffic.received.add(buf.filled().len() - before);
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(len)) = &written {
            self.traffic.sent.add(*len);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
