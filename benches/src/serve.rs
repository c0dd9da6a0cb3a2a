//! The server's process.
//!
//! Owns the listener and the line with its address. Must never do anything for a peer but bind. Next: `peers`.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::cli::Arguments;
use crate::peer::Peer;
use crate::peers::{self, Visit, raw_std};
use crate::place::{Mode, Side};

pub(crate) fn main(mut arguments: Arguments) {
    let mode = arguments.option("mode").unwrap_or(Mode::Split);
    if arguments.option::<String>("with-parent").is_some() {
        set_pdeathsig(Signal::SIGKILL).expect("a process can ask for its end");
    }
    let name = arguments.next();
    if name == raw_std::NAME {
        let _pinned = mode.enter(Side::Server);
        return raw_std::serve(&listen());
    }
    peers::visit(&name, Serve(mode));
}

struct Serve(Mode);

impl Visit for Serve {
    type Output = ();

    fn visit<P: Peer>(self) {
        self.0.enter(Side::Server).block_on(async {
            let listener = listen();
            listener.set_nonblocking(true).expect("a socket can be non-blocking");
            P::serve(listener).await;
        });
    }
}

/// A listener with room for thousands that connect at once, whose address has been printed.
fn listen() -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(4096).expect("a socket can listen");
    let listener = TcpListener::from(socket);
    println!("{}", listener.local_addr().expect("a bound address"));
    std::io::stdout().flush().expect("the address can be said");
    listener
}
