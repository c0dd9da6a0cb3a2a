//! The socket, and the one task that it has.
//!
//! Owns opening it so that nothing but the named network can reach it, sending what is due, and reading what comes. It must never
//! answer a datagram: what is sent depends on time and on one's own instances only, so that nobody can use a node to flood
//! another. Look next at `node.rs` for what it is told.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::datagram::{Datagram, MAX_DATAGRAM};
use super::node::Node;
use super::seal::Seal;
use super::settings::{Settings, Target};

/// How long to wait before the socket is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// How long one datagram may wait for room in the kernel's buffer.
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// Most datagrams that are read before anything else is done: more than the kernel usually keeps, so that after a pause
/// everybody is heard before anybody is missed.
const BATCH: usize = 1024;

/// What the kernel is asked to keep while nobody reads, in bytes: a burst of a thousand nodes. It may give less.
const RECEIVE_BUFFER: usize = 1 << 20;

/// How far a multicast goes: not past the first router.
const MULTICAST_TTL: u32 = 1;

/// Everything of a socket that is open.
struct Open {
    socket: UdpSocket,
    seal: Seal,
    /// Whom to send to.
    targets: Vec<SocketAddr>,
    loopback_only: bool,
}

/// Until stopped and everybody has been told of who left.
pub(super) async fn run(node: Arc<Node>, stop: CancellationToken) {
    loop {
        let why = match open(&node.settings) {
            Ok((mut open, home)) => {
                node.opened(home);
                match serve(&node, &mut open, &stop).await {
                    Ok(()) => return,
                    Err(error) => format!("{}: {error}", node.settings),
                }
            }
            Err(why) => why,
        };
        node.trouble(why);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(REOPEN) => {}
        }
    }
}

async fn serve(node: &Node, open: &mut Open, stop: &CancellationToken) -> io::Result<()> {
    // One byte more than may be, so that a longer one is known from one that fits.
    let mut buffer = [0; MAX_DATAGRAM + 1];
    loop {
        // First hear, then look who was not heard: after a pause everybody is in the kernel's buffer.
        read(node, open, &mut buffer)?;
        for outgoing in node.due() {
            let outcome = match outgoing.body {
                Ok(body) => send(open, &body).await,
                Err(why) => Err(why),
            };
            node.sent(outgoing.key, outcome);
        }
        let stopped = stop.is_cancelled();
        if stopped && node.is_done() {
            return Ok(());
        }
        let next = node.next();
        tokio::select! {
            () = stop.cancelled(), if !stopped => {}
            () = node.wake.notified() => {}
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            readable = open.socket.readable() => readable?,
        }
    }
}

fn read(node: &Node, open: &Open, buffer: &mut [u8]) -> io::Result<()> {
    let mut batch = Vec::new();
    while batch.len() < BATCH {
        match open.socket.try_recv_from(buffer) {
            Ok((len, source)) => {
                let datagram = if open.loopback_only && !source.ip().to_canonical().is_loopback() {
                    Err(super::events::Refusal::Foreign)
                } else {
                    open.seal.open(&buffer[..len]).and_then(|body| Datagram::decode(&body))
                };
                batch.push((source, datagram));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // Some systems report here that an earlier datagram found nobody.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error),
        }
    }
    if !batch.is_empty() {
        node.heard(batch);
    }
    Ok(())
}

/// Sends to everybody; fails if nobody could be sent to.
async fn send(open: &mut Open, body: &[u8]) -> Result<(), String> {
    let datagram = open.seal.close(body)?;
    let mut outcome = Ok(());
    let mut any = open.targets.is_empty();
    for target in &open.targets {
        let why = match timeout(SEND_LIMIT, open.socket.send_to(&datagram, target)).await {
            Ok(Ok(_)) => {
                any = true;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the system's buffer is full".to_owned(),
        };
        outcome = Err(format!("cannot send to {target}: {why}"));
    }
    if any { Ok(()) } else { outcome }
}

/// Opens the socket, and says what this machine is reached at from there.
fn open(settings: &Settings) -> Result<(Open, Option<IpAddr>), String> {
    let seal = Seal::new(settings.key.as_ref())?;
    let (socket, targets, home) = match &settings.target {
        // Bound to the broadcast address itself, it gets only what is sent there: nothing from other networks.
        Target::Broadcast(addr) => (shared(*addr).and_then(broadcasting), vec![*addr], own_address(*addr)),
        Target::Multicast(addr) => {
            let interface = settings.multicast_interface();
            (shared(*addr).and_then(|socket| joined(socket, *addr, interface)), vec![*addr], Some(interface.into()))
        }
        Target::Unicast(list) => {
            let (socket, own) = first_of(list)?;
            let others = list.iter().copied().filter(|addr| *addr != own).collect();
            (Ok(socket), others, Some(own.ip()))
        }
    };
    let socket = socket.map_err(|error| format!("{settings}: cannot listen there: {error}"))?;
    // It only helps, and a system that gives less is no trouble.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    let socket = socket.set_nonblocking(true).and_then(|()| UdpSocket::from_std(socket.into()));
    let socket = socket.map_err(|error| format!("{settings}: {error}"))?;
    Ok((Open { socket, seal, targets, loopback_only: settings.is_loopback() }, home))
}

fn socket(addr: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))
}

/// A socket at an address that all processes of a machine listen to; each gets every datagram.
fn shared(addr: SocketAddr) -> io::Result<Socket> {
    let socket = socket(addr)?;
    socket.set_reuse_address(true)?;
    // Linux needs no more, and would let only processes of one user share the port; others need this one.
    #[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(addr))?;
    Ok(socket)
}

fn broadcasting(socket: Socket) -> io::Result<Socket> {
    socket.set_broadcast(true)?;
    Ok(socket)
}

fn joined(socket: Socket, group: SocketAddr, interface: Ipv4Addr) -> io::Result<Socket> {
    let IpAddr::V4(group) = group.ip() else { return Err(io::ErrorKind::Unsupported.into()) };
    socket.join_multicast_v4(&group, &interface)?;
    socket.set_multicast_if_v4(&interface)?;
    socket.set_multicast_ttl_v4(MULTICAST_TTL)?;
    socket.set_multicast_loop_v4(true)?;
    // Else it would also get what comes in at interfaces where somebody else has joined the group.
    #[cfg(target_os = "linux")]
    socket.set_multicast_all_v4(false)?;
    Ok(socket)
}

/// A socket at the first address that is this machine's own and free.
fn first_of(list: &[SocketAddr]) -> Result<(Socket, SocketAddr), String> {
    let mut refusals = Vec::new();
    for addr in list {
        match socket(*addr).and_then(|socket| socket.bind(&SockAddr::from(*addr)).map(|()| socket)) {
            Ok(socket) => return Ok((socket, *addr)),
            Err(error) => refusals.push(format!("{addr}: {error}")),
        }
    }
    refusals.truncate(4);
    Err(format!(
        "none of the {} addresses of the list is this machine's own and free ({})",
        list.len(),
        refusals.join("; ")
    ))
}

/// From which address datagrams to this one are sent. Asks the routing table and sends nothing.
fn own_address(target: SocketAddr) -> Option<IpAddr> {
    if target.ip().is_loopback() {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    let asked = StdSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.set_broadcast(true)?;
        socket.connect(target)?;
        socket.local_addr()
    });
    asked.ok().map(|addr| addr.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
#[allow(clippy::panic, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_network_that_this_machine_does_not_have_is_named_in_the_trouble() {
        // Opening sends nothing, so nothing is sent also where the machine has this network after all.
        let Ok(settings) = Settings::broadcast("198.51.100.255:5000") else { panic!("it is a broadcast address") };
        match open(&settings) {
            Err(why) => assert!(why.contains("198.51.100.255:5000: cannot listen there"), "{why}"),
            Ok(_) => println!("this machine has that network: nothing was tested"),
        }
    }
}
