//! The socket, and the one task that it has.
//!
//! Owns opening it so that nothing but the named network can reach it, sending what is due, and reading what comes. It must never
//! answer a datagram: what is sent depends on time and on one's own instances only, so that nobody can use a node to flood
//! another. Look next at `node.rs` for what it is told.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::datagram::{Datagram, MAX_DATAGRAM};
use super::node::Node;
use super::parsed::Parsed;
use super::seal::Seal;
use super::settings::{Settings, Target};

/// How long to wait before the socket is opened again: the first time, and at most, doubling in between. An attempt is a few
/// system calls, and a network that is back shall not wait for longer than two usual periods.
const REOPEN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

/// How often to look whether the network is still there, because whoever only listens learns it from no error: once per usual
/// period.
const LOOK: Duration = Duration::from_secs(2);

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
    /// What was heard before.
    parsed: Parsed,
    /// Whom to send to.
    targets: Vec<SocketAddr>,
    loopback_only: bool,
    /// What this machine is reached at from there.
    home: Option<IpAddr>,
    /// Whether anything was ever sent or heard by it.
    works: bool,
}

/// Until stopped and everybody has been told of who left.
pub(super) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut pause = REOPEN.0;
    loop {
        let why = match open(&node.settings) {
            Ok(mut open) => {
                node.opened(open.home);
                let ended = serve(&node, &mut open, &stop).await;
                if open.works {
                    pause = REOPEN.0;
                }
                match ended {
                    Ok(()) => return,
                    Err(error) => format!("{}: {error}", node.settings),
                }
            }
            Err(why) => why,
        };
        node.trouble(why);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(REOPEN.1);
        node.reopens();
    }
}

async fn serve(node: &Node, open: &mut Open, stop: &CancellationToken) -> io::Result<()> {
    // One byte more than may be, so that a longer one is known from one that fits.
    let mut buffer = [0; MAX_DATAGRAM + 1];
    let mut looks = interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // First hear, then look who was not heard: after a pause everybody is in the kernel's buffer.
        read(node, open, &mut buffer)?;
        for outgoing in node.due() {
            let outcome = match outgoing.body {
                Ok(body) => send(open, &body).await?,
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
            _ = looks.tick() => look(open, &node.settings.target)?,
            readable = open.socket.readable() => readable?,
        }
    }
}

fn read(node: &Node, open: &mut Open, buffer: &mut [u8]) -> io::Result<()> {
    let mut batch = Vec::new();
    while batch.len() < BATCH {
        match open.socket.try_recv_from(buffer) {
            Ok((len, source)) => {
                let datagram = if open.loopback_only && !source.ip().to_canonical().is_loopback() {
                    Err(super::events::Refusal::Foreign)
                } else {
                    open.seal.open(&buffer[..len]).and_then(|body| Datagram::decode(&body, &mut open.parsed))
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
        open.works = true;
        node.heard(batch);
    }
    Ok(())
}

/// Sends to everybody. The inner result fails if nobody could be sent to now, the outer one if there is no network to send to.
async fn send(open: &mut Open, body: &[u8]) -> io::Result<Result<(), String>> {
    let datagram = match open.seal.close(body) {
        Ok(datagram) => datagram,
        Err(why) => return Ok(Err(why)),
    };
    let (mut outcome, mut gone) = (Ok(()), None);
    let mut any = open.targets.is_empty();
    for target in &open.targets {
        let why = match timeout(SEND_LIMIT, open.socket.send_to(&datagram, target)).await {
            Ok(Ok(_)) => {
                any = true;
                continue;
            }
            Ok(Err(error)) => {
                let why = error.to_string();
                gone = gone.or_else(|| is_gone(&error).then_some(error));
                why
            }
            Err(_) => "the system's buffer is full".to_owned(),
        };
        outcome = Err(format!("cannot send to {target}: {why}"));
    }
    open.works |= any && !open.targets.is_empty();
    match gone {
        _ if any => Ok(Ok(())),
        Some(error) => Err(error),
        None => Ok(outcome),
    }
}

/// Whether this says that the network is not there, so that another socket is needed once it is. What another socket would
/// change nothing about, for example what a firewall forbids, is no such error: this one can still hear.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, InvalidInput, NetworkDown, NetworkUnreachable};
    /// What Unix systems say of an interface that is no more; the standard library has no names for them.
    const NO_DEVICE: [i32; 2] = [6, 19];
    // Linux calls it an invalid argument to send from an address that the machine has no more.
    matches!(error.kind(), AddrNotAvailable | InvalidInput | NetworkDown | NetworkUnreachable)
        || cfg!(unix) && error.raw_os_error().is_some_and(|code| NO_DEVICE.contains(&code))
}

/// Looks whether the socket is still where it was opened, and fails if it must be opened anew.
fn look(open: &Open, target: &Target) -> io::Result<()> {
    let changed = |what: &str| Err(io::Error::new(io::ErrorKind::NetworkDown, what));
    match target {
        Target::Broadcast(addr) => {
            is_here(addr.ip())?;
            if own_address(*addr) != open.home {
                return changed("this machine's own address there has changed");
            }
        }
        Target::Multicast(addr) => {
            let (Some(IpAddr::V4(interface)), IpAddr::V4(group)) = (open.home, addr.ip()) else { return Ok(()) };
            is_here(interface.into())?;
            // Who is a member already is told so. An interface that came back with its address has forgotten its members.
            match SockRef::from(&open.socket).join_multicast_v4(&group, &interface) {
                Ok(()) => return changed("the interface is another one than before"),
                Err(error) if is_gone(&error) => return Err(error),
                Err(_) => {}
            }
        }
        Target::Unicast(_) => open.home.map_or(Ok(()), is_here)?,
    }
    Ok(())
}

/// Whether this is one of the machine's own addresses, or the broadcast address of one of its networks.
fn is_here(ip: IpAddr) -> io::Result<()> {
    let addr = SocketAddr::new(ip, 0);
    let bound = socket(addr).and_then(|socket| socket.bind(&SockAddr::from(addr)));
    bound
        .map_err(|error| io::Error::new(error.kind(), format!("this machine is not on that network any more: {error}")))
}

/// Opens the socket, and says what this machine is reached at from there.
fn open(settings: &Settings) -> Result<Open, String> {
    let seal = Seal::new(settings.key.as_ref())?;
    let (socket, targets, home) = match &settings.target {
        // Bound to the broadcast address itself, it gets only what is sent there: nothing from other networks.
        Target::Broadcast(addr) => (shared(*addr).and_then(broadcasting), vec![*addr], own_address(*addr)),
        Target::Multicast(addr) => {
            let interface = settings.multicast_interface();
            let socket = is_here(interface.into()).and_then(|()| shared(*addr));
            (socket.and_then(|socket| joined(socket, *addr, interface)), vec![*addr], Some(interface.into()))
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
    let loopback_only = settings.is_loopback();
    Ok(Open { socket, seal, parsed: Parsed::default(), targets, loopback_only, home, works: false })
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
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::logged::Logged;
    use crate::registry::{Freshness, RegistrationState};

    #[tokio::test]
    async fn a_network_that_this_machine_does_not_have_is_named_in_the_trouble() {
        // Opening sends nothing, so nothing is sent also where the machine has this network after all.
        let Ok(settings) = Settings::broadcast("198.51.100.255:5000") else { panic!("it is a broadcast address") };
        match open(&settings) {
            Err(why) => assert!(why.contains("198.51.100.255:5000: cannot listen there"), "{why}"),
            Ok(_) => println!("this machine has that network: nothing was tested"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_is_missing_is_looked_for_less_and_less_often_and_that_is_counted() {
        let settings = Settings::unicast(["198.51.100.7:5000"]).unwrap();
        if open(&settings).is_ok() {
            return println!("this machine has that address: nothing was tested");
        }
        let log = Arc::new(Logged::at(tracing::Level::WARN));
        let _logged = tracing::subscriber::set_default(Arc::clone(&log));
        let (node, stop) = (Arc::new(Node::new(settings)), CancellationToken::new());
        let watch = node.watch("service1", None);
        assert!(node.run(&stop));
        let (_, state) = node.register((*super::super::datagram::tests::usual().instance).clone());
        let began = Instant::now();
        // After 0.5 s, 1 s more, 2 s more, and every 4 s from then on.
        for (seconds, reopened) in [(0.4, 0), (0.6, 1), (1.4, 1), (1.6, 2), (3.4, 2), (3.6, 3), (7.6, 4), (59.4, 16)] {
            tokio::time::sleep_until(began + Duration::from_secs_f64(seconds)).await;
            assert_eq!(node.reopened(), reopened, "after {seconds} s");
        }
        assert_eq!(log.lines(), 1, "warnings");
        let RegistrationState::Retrying(why) = state.borrow().clone() else { panic!("it is not registered") };
        assert!(why.contains("198.51.100.7:5000"), "{why}");
        let snapshot = watch.borrow().clone();
        assert_ne!(snapshot.freshness, Freshness::Live);
        assert!(snapshot.problem.as_ref().is_some_and(|problem| problem.contains("198.51.100.7")), "{snapshot:?}");
        stop.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_well_is_not_opened_again() {
        let port = StdSocket::bind("127.77.77.77:0").unwrap();
        let port = port.local_addr().unwrap().port();
        for settings in [
            Settings::broadcast(&format!("127.255.255.255:{port}")).unwrap(),
            Settings::multicast(&format!("239.77.1.3:{port}")).unwrap(),
            Settings::unicast([format!("127.0.0.1:{port}").as_str()]).unwrap(),
        ] {
            let (node, stop) = (Arc::new(Node::new(settings)), CancellationToken::new());
            assert!(node.run(&stop));
            sleep(LOOK * 20).await;
            assert_eq!(node.reopened(), 0, "{}", node.settings);
            stop.cancel();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_a_network_that_is_gone_needs_another_socket() {
        let gone = |code| is_gone(&io::Error::from_raw_os_error(code));
        // ENXIO, ENODEV, EINVAL, EADDRNOTAVAIL, ENETDOWN, ENETUNREACH.
        assert!([6, 19, 22, 99, 100, 101].into_iter().all(gone));
        // EPERM, EAGAIN, EACCES, EMSGSIZE, ENOBUFS, ECONNREFUSED, EHOSTUNREACH.
        assert!(![1, 11, 13, 90, 105, 111, 113].into_iter().any(gone));
    }
}
