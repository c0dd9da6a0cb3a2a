//! A Consul that does what it is told, also what a real one cannot be made to do.
//!
//! Owns [`FakeConsul`]: an HTTP server whose answers are a function of the request, and the record of what it was
//! asked. It must never know more of Consul than what a test tells it. Look next at `registry_consul_faults.rs`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) token: Option<String>,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

impl Request {
    /// The index of a blocking query.
    pub(crate) fn index(&self) -> Option<u64> {
        self.query.split('&').find_map(|pair| pair.strip_prefix("index=")).and_then(|index| index.parse().ok())
    }

    pub(crate) fn is_health(&self) -> bool {
        self.path.starts_with("/v1/health/service/")
    }

    /// The last name in the path of a call that changes something: `register`, `pass`, `fail` or `deregister`.
    pub(crate) fn verb(&self) -> &'static str {
        ["/agent/service/register", "/agent/check/pass/", "/agent/check/fail/", "/agent/service/deregister/"]
            .into_iter()
            .find(|part| self.path.contains(part))
            .map_or("", |part| part.trim_end_matches('/').rsplit('/').next().unwrap_or(""))
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Not before [`FakeConsul::wake`]; then the script is asked again.
    Hold,
    /// Not before there is such news, then the script is asked again; but after so long this, as Consul ends a query that has
    /// waited in vain.
    HoldFor(Duration, watch::Receiver<()>, Arc<Self>),
    /// Never.
    Hang,
    /// The connection is reset.
    Reset,
}

impl Reply {
    pub(crate) fn text(status: u16, body: impl Into<String>) -> Self {
        Self::Answer { status, headers: Vec::new(), body: body.into() }
    }

    pub(crate) fn list(index: u64, entries: &[Value]) -> Self {
        Self::text(200, Value::from(entries).to_string()).header("X-Consul-Index", index.to_string())
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }
}

/// An instance as Consul lists it.
pub(crate) fn entry(id: &str, port: u16) -> Value {
    json!({
        "Node": {"Address": "127.0.0.1"},
        "Service": {"ID": id, "Address": "127.0.0.1", "Port": port},
        "Checks": [{"CheckID": format!("service:{id}"), "Status": "passing", "ServiceID": id}],
    })
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

pub(crate) struct FakeConsul {
    addr: SocketAddr,
    requests: watch::Sender<Vec<Request>>,
    waking: watch::Sender<()>,
    script: Arc<Mutex<Arc<Script>>>,
    // Ends the server with the fake.
    _server: JoinSet<()>,
}

impl FakeConsul {
    pub(crate) async fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    /// Listens at this address, which is one of the loopback interface.
    pub(crate) async fn start_at(addr: SocketAddr, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let requests = watch::Sender::new(Vec::new());
        let waking = watch::Sender::new(());
        let script: Arc<Mutex<Arc<Script>>> = Arc::new(Mutex::new(Arc::new(script)));
        let mut server = JoinSet::new();
        let shared = (requests.clone(), waking.clone(), Arc::clone(&script));
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (requests, waking, script) = shared.clone();
                connections.spawn(async move {
                    // Whatever ends a connection is seen by the other side, which is what is tested.
                    let _ = serve(stream, &requests, &waking, &script).await;
                });
            }
        });
        Self { addr, requests, waking, script, _server: server }
    }

    /// Lists `entries` under `index`, takes every registration, and holds blocking queries until something changes.
    pub(crate) async fn listing(index: u64, entries: &[Value]) -> Self {
        Self::start(listing(index, entries)).await
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// From now on answers so; queries that are held are answered so too.
    pub(crate) fn becomes(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        *self.script.lock().expect("no test panics with the script") = Arc::new(script);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.waking.send_replace(());
    }

    /// Everything that was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.borrow().clone()
    }

    /// The requests once they fit; panics with them when they never do.
    pub(crate) async fn asked(&self, what: &str, fits: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        let mut requests = self.requests.subscribe();
        let fitting = tokio::time::timeout(super::PATIENCE, requests.wait_for(|requests| fits(requests))).await;
        match fitting {
            Ok(Ok(requests)) => requests.clone(),
            _ => panic!("waited for {what}, but what was asked is {:#?}", self.requests()),
        }
    }
}

/// The script of a Consul in good health.
pub(crate) fn listing(index: u64, entries: &[Value]) -> impl Fn(&Request) -> Reply + Send + Sync + 'static + use<> {
    let entries = entries.to_vec();
    move |request| {
        if request.path == "/v1/acl/token/self" {
            Reply::text(401, "ACL support disabled")
        } else if !request.is_health() {
            Reply::text(200, "")
        } else if request.index() == Some(index) {
            Reply::Hold
        } else {
            Reply::list(index, &entries)
        }
    }
}

async fn serve(
    stream: TcpStream,
    requests: &watch::Sender<Vec<Request>>,
    waking: &watch::Sender<()>,
    script: &Mutex<Arc<Script>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(request) = read(&mut stream).await? else { return Ok(()) };
        requests.send_modify(|requests| requests.push(request.clone()));
        let mut woken = waking.subscribe();
        let reply = loop {
            let current = Arc::clone(&script.lock().expect("no test panics with the script"));
            match current(&request) {
                Reply::Hold => woken.changed().await.map_err(std::io::Error::other)?,
                Reply::HoldFor(time, mut news, then) => tokio::select! {
                    woken = woken.changed() => woken.map_err(std::io::Error::other)?,
                    Ok(()) = news.changed() => {}
                    () = tokio::time::sleep_until(request.at + time) => break (*then).clone(),
                },
                reply => break reply,
            }
        };
        match reply {
            Reply::Answer { status, headers, body } => {
                let mut head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", body.len());
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                stream.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
            }
            Reply::Reset => return SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO)),
            Reply::Hang | Reply::Hold | Reply::HoldFor(..) => std::future::pending().await,
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let mut words = lines.first().map_or("", String::as_str).split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        token: header("x-consul-token"),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        at: Instant::now(),
    }))
}
