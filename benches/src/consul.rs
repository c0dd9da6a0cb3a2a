//! A Consul agent for W7, in memory and on ports of its own.
//!
//! Must never outlive this program where the machine can help it. Next: `run`.
//!
//! `tests/support/consul.rs` starts the same agent and is not shared: it is asynchronous, fails or says that a test is skipped
//! where there is no Consul, and most of it is about several agents, rights and TLS. Here W7 is left out, and nothing else is needed.

use std::env;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A running agent, killed when this goes.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    /// As `PICOM_REGISTRY` wants it.
    pub(crate) url: String,
}

/// The program at `CONSUL_BIN`, else `consul` on the path.
pub(crate) fn program() -> Option<PathBuf> {
    match env::var_os("CONSUL_BIN") {
        Some(path) => Some(PathBuf::from(path)).filter(|path| path.is_file()),
        None => on_path("consul"),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

impl Agent {
    pub(crate) fn start() -> Option<Self> {
        let program = program()?;
        let mut command = match on_path("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
        let [http, server, lan] =
            listeners.map(|listener| listener.local_addr().expect("a bound address").port().to_string());
        command.args(["agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "err"]);
        command.args(["-serf-wan-port", "-1", "-dns-port", "-1", "-grpc-port", "-1"]);
        command.args(["-http-port", &http, "-server-port", &server, "-serf-lan-port", &lan]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the consul program can be started");
        let agent = Self { child, url: format!("consul://127.0.0.1:{http}") };
        let begun = Instant::now();
        while !has_leader(&http) {
            assert!(begun.elapsed() < Duration::from_secs(20), "consul elects itself");
            // An agent does not say when it has a leader.
            sleep(Duration::from_millis(20));
        }
        Some(agent)
    }
}

fn has_leader(port: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        stream.write_all(b"GET /v1/status/leader HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    // The answer is the leader's address as a string of JSON, empty while there is none.
    ask().is_ok_and(|answer| {
        answer.starts_with("HTTP/1.0 200") && answer.trim_end().ends_with("\"") && !answer.trim_end().ends_with("\"\"")
    })
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It keeps nothing, so there is nothing that it must finish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
