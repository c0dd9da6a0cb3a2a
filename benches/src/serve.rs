//! The server's process.
//!
//! Owns the listener and the line with its address. Must never do anything for a peer but bind. Next: `peers`.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};

use crate::cli::Arguments;
use crate::peer::Peer;
use crate::peers::{self, Visit, moleculer, raw_std};
use crate::place::{Mode, Side, with_parent};

pub(crate) fn main(mut arguments: Arguments) {
    let mode = arguments.option("mode").unwrap_or(Mode::Split);
    with_parent(&arguments);
    let name = arguments.next();
    if name == raw_std::NAME {
        let _pinned = mode.enter(Side::Server);
        return raw_std::serve(&listen());
    }
    if name == moleculer::NAME {
        let _pinned = mode.enter(Side::Server);
        moleculer::become_it(moleculer::server());
    }
    peers::visit(&name, Serve { mode, connections: arguments.option("connections") });
}

struct Serve {
    mode: Mode,
    connections: Option<usize>,
}

impl Visit for Serve {
    type Output = ();

    fn visit<P: Peer>(self) {
        self.mode.enter(Side::Server).block_on(async {
            let listener = listen();
            listener.set_nonblocking(true).expect("a socket can be non-blocking");
            P::serve(listener, self.connections).await;
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
