//! A real Consul agent for one test.
//!
//! Owns [`Agent`]: starting, stopping, freezing and asking it. The program is found through `CONSUL_BIN` or `PATH`;
//! `tests/get-consul.sh` fetches one. Without it a test is skipped loudly, or fails when `PICOM_REQUIRE_CONSUL=1`.
//! It must never leave an agent behind, nor touch a process that it did not start.

use std::env;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long an agent may take to elect itself; a tenth of a second is normal.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running `consul agent -dev`, killed on drop.
pub(crate) struct Agent {
    program: PathBuf,
    http_port: u16,
    https: bool,
    arguments: Vec<String>,
    /// What it keeps on disk, if anything; removed on drop.
    folder: Option<PathBuf>,
    child: Child,
}

/// What [`http`] got back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Agent {
    /// A plain agent; `None`, after saying so, where there is no Consul.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// An agent that denies what no token allows. `management` is a token that may do everything.
    pub(crate) async fn start_with_rights(management: &str) -> Option<Self> {
        let config = format!(
            "acl {{ enabled = true  default_policy = \"deny\"  tokens {{ master = \"{management}\" agent = \"{management}\" }} }}"
        );
        let agent = Self::start_with(&["-hcl", &config]).await?;
        // Rights are ready a moment after the leader.
        let deadline = Instant::now() + START_TIMEOUT;
        while agent.http("GET", "/v1/acl/token/self", Some(management), "").await.is_none_or(|a| a.status != 200) {
            assert!(Instant::now() < deadline, "consul's rights were not ready within {START_TIMEOUT:?}");
            sleep(Duration::from_millis(20)).await;
        }
        Some(agent)
    }

    /// An agent that speaks only TLS, and only to holders of a certificate made by `ca`.
    pub(crate) async fn start_with_tls(ca: &Path, cert: &Path, key: &Path) -> Option<Self> {
        let config = format!(
            "ca_file = {ca:?}  cert_file = {cert:?}  key_file = {key:?}  verify_incoming_https = true  \
             tls_min_version = \"tls12\""
        );
        Self::start_with(&["https", "-hcl", &config]).await
    }

    /// Three servers that elect a leader among themselves; returns when they have one.
    pub(crate) async fn start_three() -> Option<[Self; 3]> {
        let program = program()?;
        // Ports can be lost to somebody else here too, but then nothing elects a leader and the whole is tried again.
        for _ in 0..3 {
            let ports = [(); 3].map(|()| free_ports());
            let mut agents = [0, 1, 2].map(|number| {
                let http_port = ports[number][0];
                let folder = env::temp_dir().join(format!("picom-consul-{http_port}"));
                Self::server(&program, server_arguments(number, &ports, &folder), http_port, folder)
            });
            let mut ready = true;
            for agent in &mut agents {
                ready = ready && agent.ready().await;
            }
            if ready {
                return Some(agents);
            }
        }
        panic!("three consul servers found no leader within {START_TIMEOUT:?}");
    }

    /// One server that keeps what it knows on disk.
    pub(crate) async fn start_kept() -> Option<Self> {
        let program = program()?;
        // Ports can be lost here as everywhere.
        for _ in 0..3 {
            let ports = [free_ports()];
            let folder = env::temp_dir().join(format!("picom-consul-{}", ports[0][0]));
            let mut agent = Self::server(&program, server_arguments(0, &ports, &folder), ports[0][0], folder);
            if agent.ready().await {
                return Some(agent);
            }
        }
        panic!("consul did not start within {START_TIMEOUT:?} on any of three sets of ports");
    }

    fn server(program: &Path, arguments: Vec<String>, http_port: u16, folder: PathBuf) -> Self {
        let child = spawn(program, &arguments);
        Self { program: program.to_owned(), http_port, https: false, arguments, folder: Some(folder), child }
    }

    /// Which of the agents leads; `None` while nobody is known to.
    pub(crate) async fn leader(agents: &[Self]) -> Option<usize> {
        for agent in agents {
            if let Some(answer) = agent.http("GET", "/v1/status/leader", None, "").await {
                let own = |a: &Self| a.arguments.iter().any(|argument| answer.body.contains(&format!(":{argument}\"")));
                if let (200, Some(leader)) = (answer.status, agents.iter().position(own)) {
                    return Some(leader);
                }
            }
        }
        None
    }

    async fn start_with(more: &[&str]) -> Option<Self> {
        let program = program()?;
        let (https, more) = match more.split_first() {
            Some((&"https", rest)) => (true, rest),
            _ => (false, more),
        };
        // Free ports can be taken by somebody else before the agent binds them; then it ends early.
        for _ in 0..5 {
            let [http_port, server, lan] = free_ports();
            let (plain, tls) = if https { (-1, i32::from(http_port)) } else { (i32::from(http_port), -1) };
            let mut arguments: Vec<String> = [
                "agent",
                "-dev",
                "-bind",
                "127.0.0.1",
                "-client",
                "127.0.0.1",
                "-node",
                "lab",
                "-serf-wan-port",
                "-1",
                "-dns-port",
                "-1",
                "-grpc-port",
                "-1",
                "-log-level",
                "err",
            ]
            .map(str::to_owned)
            .to_vec();
            for (flag, port) in [
                ("-http-port", plain),
                ("-https-port", tls),
                ("-server-port", i32::from(server)),
                ("-serf-lan-port", i32::from(lan)),
            ] {
                arguments.extend([flag.to_owned(), port.to_string()]);
            }
            arguments.extend(more.iter().map(|&argument| argument.to_owned()));
            let child = spawn(&program, &arguments);
            let mut agent = Self { program: program.clone(), http_port, https, arguments, folder: None, child };
            if agent.ready().await {
                return Some(agent);
            }
        }
        panic!("consul did not start within {START_TIMEOUT:?} on any of five sets of ports");
    }

    /// `http://127.0.0.1:…` or `https://127.0.0.1:…`.
    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.https { "https" } else { "http" }, self.http_port)
    }

    /// Ends the agent at once.
    pub(crate) fn kill(&mut self) {
        // Killing an agent that has ended already is not worth a word.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts the agent again on the same ports, without any memory, and waits until it has a leader.
    pub(crate) async fn restart_empty(&mut self) {
        assert!(self.folder.is_none(), "this agent keeps what it knows");
        self.restart().await;
    }

    /// Starts the agent again on the same ports, with what it has kept, and waits until there is a leader.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.child = spawn(&self.program, &self.arguments);
            if self.ready().await {
                return;
            }
            assert!(Instant::now() < deadline, "consul did not start again on port {}", self.http_port);
        }
    }

    /// Freezes the agent.
    pub(crate) fn stop(&self) {
        self.signal("STOP");
    }

    /// Thaws a frozen agent.
    pub(crate) fn cont(&self) {
        self.signal("CONT");
    }

    /// Asks the agent; panics unless it answers with success.
    pub(crate) async fn get(&self, path: &str) -> serde_json::Value {
        let answer = self.http("GET", path, None, "").await.expect("consul answers");
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
        serde_json::from_str(&answer.body).expect("consul answers with JSON")
    }

    /// Tells the agent; panics unless it answers with success.
    pub(crate) async fn put(&self, path: &str, body: &serde_json::Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.http("PUT", path, None, &body).await.expect("consul answers");
        assert_eq!(answer.status, 200, "PUT {path}: {}", answer.body);
    }

    /// One plain HTTP request; `None` when the agent cannot be reached.
    pub(crate) async fn http(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Option<Answer> {
        timeout(Duration::from_secs(10), http(self.http_port, method, path, token, body)).await.ok()?.ok()
    }

    async fn ready(&mut self) -> bool {
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            if self.child.try_wait().expect("the agent can be asked for its end").is_some() {
                return false;
            }
            if self.https {
                // Without a TLS client here, an open port has to do; the tests wait for the rest.
                if TcpStream::connect(("127.0.0.1", self.http_port)).await.is_ok() {
                    return true;
                }
            } else if let Some(answer) = self.http("GET", "/v1/status/leader", None, "").await {
                if answer.status == 200 && answer.body.trim().len() > 2 {
                    return true;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
        false
    }

    fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// The Consul program, or `None` after saying that the test is skipped.
pub(crate) fn program() -> Option<PathBuf> {
    let found = match env::var_os("CONSUL_BIN") {
        Some(path) => Some(PathBuf::from(path)).filter(|path| path.is_file()),
        None => on_path("consul"),
    };
    if found.is_none() {
        let how = "run tests/get-consul.sh and set CONSUL_BIN to the path that it prints";
        assert!(env::var("PICOM_REQUIRE_CONSUL").as_deref() != Ok("1"), "no consul binary: {how}");
        static ONCE: Once = Once::new();
        // Written past the test harness, which would keep the line of a test that passes to itself.
        ONCE.call_once(|| {
            let _ =
                writeln!(std::io::stderr(), "\nSKIPPED: no consul binary, so nothing was tested with Consul; {how}\n");
        });
    }
    found
}

/// Sends a signal to a process that the test started.
pub(crate) fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{name} to process {pid}");
}

pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Starts the agent so that it dies with the thread that started it, where the machine has a tool for that: a test that
/// is killed leaves nothing behind.
fn spawn(program: &Path, arguments: &[String]) -> Child {
    let mut command = match on_path("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the consul program can be started")
}

/// What makes one of so many servers as there are ports, with elections as quick as Consul can.
fn server_arguments(number: usize, ports: &[[u16; 3]], folder: &Path) -> Vec<String> {
    let [http_port, server, lan] = ports[number];
    let config = "performance { raft_multiplier = 1 }  autopilot { cleanup_dead_servers = false }";
    let mut arguments: Vec<String> = [
        "agent",
        "-server",
        "-bind",
        "127.0.0.1",
        "-client",
        "127.0.0.1",
        "-serf-wan-port",
        "-1",
        "-dns-port",
        "-1",
        "-grpc-port",
        "-1",
        "-log-level",
        "err",
        "-retry-interval",
        "1s",
        "-hcl",
        config,
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(["-bootstrap-expect".to_owned(), ports.len().to_string()]);
    arguments.extend(["-node".to_owned(), format!("lab{number}")]);
    arguments.extend(["-data-dir".to_owned(), folder.display().to_string()]);
    for (flag, port) in [("-http-port", http_port), ("-server-port", server), ("-serf-lan-port", lan)] {
        arguments.extend([flag.to_owned(), port.to_string()]);
    }
    for [_, _, lan] in ports {
        arguments.extend(["-retry-join".to_owned(), format!("127.0.0.1:{lan}")]);
    }
    arguments
}

fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("a bound port").port())
}

/// One HTTP request on a connection of its own.
async fn http(port: u16, method: &str, path: &str, token: Option<&str>, body: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let token = token.map_or(String::new(), |token| format!("X-Consul-Token: {token}\r\n"));
    // HTTP 1.0: the answer comes in one piece and ends with the connection.
    let request = format!("{method} {path} HTTP/1.0\r\n{token}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer { status, body: body.to_owned() })
}
