//! Hosts on a network of their own, and a process on each of them.
//!
//! Owns [`Network`], which is made of network namespaces behind two switches with one cable between them, and [`Host`]. All of it
//! is in a user namespace that ends with the test: it must never touch an interface of this machine, nor need the rights to.
//! Where the machine refuses that, hosts are loopback addresses, which cannot be unplugged. Look next at `registry_hosts.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{self, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use picom::registry::Freshness;
use picom::{Context, Methods, Picom, Status, args};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::PATIENCE;
use super::consul::on_path;

const URL: &str = "PICOM_TEST_HOST_URL";
const BIND: &str = "PICOM_TEST_HOST_BIND";
const NUMBER: &str = "PICOM_TEST_HOST_NUMBER";
/// Begins the lines that are for the test.
const MARK: &str = "@picom ";
/// Real hosts listen on this port and their number, so that they are known whatever their address is.
const PORT: u16 = 4000;
/// Calls that each host makes when asked: that one of four never answers is less likely than one in ten million.
const CALLS: usize = 60;

/// Makes the two switches and the cable; hosts come later. Ends with its input.
const SWITCHES: &str = "
    mount -t tmpfs none /run
    mkdir /run/netns
    for n in 1 2; do
        ip link add switch$n type bridge mcast_snooping 0
        ip link set switch$n up
    done
    ip netns add probe
    ip netns delete probe
    ip link add cable1 type veth peer name cable2
    ip link set cable1 master switch1 up
    ip link set cable2 master switch2 up
    echo ready
    exec cat";

/// The time in which this process was awake. Who stops it, because something else is to be measured, stops its hosts too.
#[derive(Clone)]
struct Awake(Arc<AtomicU64>);

impl Awake {
    const TICK: Duration = Duration::from_millis(10);

    fn start() -> Self {
        let awake = Self(Arc::default());
        let ticking = awake.clone();
        tokio::spawn(async move {
            loop {
                let began = Instant::now();
                sleep(Self::TICK).await;
                let ticked = began.elapsed().min(Self::TICK * 10);
                ticking.0.fetch_add(u64::try_from(ticked.as_micros()).expect("a short time"), Ordering::SeqCst);
            }
        });
        awake
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst))
    }
}

pub(crate) struct Network {
    awake: Awake,
    /// Keeps the namespaces; without one, hosts are loopback addresses.
    keeper: Option<process::Child>,
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill().and_then(|()| keeper.wait());
        }
    }
}

impl Network {
    /// Hosts 1 and 2 are at one switch, the others at the other one.
    pub(crate) fn new(hosts: u8) -> Self {
        match keeper() {
            Ok(keeper) => {
                let network = Self { awake: Awake::start(), keeper: Some(keeper) };
                for host in 1..=hosts {
                    network.run(&format!("ip netns add host{host}; ip -n host{host} link set lo up"));
                    network.plug(host);
                }
                network
            }
            Err(why) => {
                // Not `eprintln!`, which is heard only when the test fails.
                let _ = writeln!(
                    std::io::stderr(),
                    "\nNOT TESTED WITH REAL HOSTS: this machine makes no network namespaces ({why}).\n\
                     Hosts are loopback addresses instead, and nothing is unplugged.\n"
                );
                Self { awake: Awake::start(), keeper: None }
            }
        }
    }

    /// For how long this process has been awake, to be compared with another time of the same.
    pub(crate) fn now(&self) -> Duration {
        self.awake.now()
    }

    pub(crate) fn is_real(&self) -> bool {
        self.keeper.is_some()
    }

    pub(crate) fn ip(&self, host: u8) -> Ipv4Addr {
        if self.is_real() { Ipv4Addr::new(10, 77, 0, host) } else { Ipv4Addr::new(127, 0, 0, host) }
    }

    pub(crate) fn broadcast(&self) -> Ipv4Addr {
        if self.is_real() { Ipv4Addr::new(10, 77, 0, 255) } else { Ipv4Addr::new(127, 255, 255, 255) }
    }

    /// Gives a host its interface, which is another one each time, with the same addresses.
    pub(crate) fn plug(&self, host: u8) {
        let (ip, switch) = (self.ip(host), 1 + u8::from(host > 2));
        self.run(&format!(
            "ip link add port{host} type veth peer name eth0 address 02:00:00:00:00:0{host} netns host{host}
             ip link set port{host} master switch{switch} up
             ip -n host{host} addr add {ip}/24 brd + dev eth0
             ip -n host{host} link set eth0 up"
        ));
    }

    /// Takes a host's interface away.
    pub(crate) fn unplug(&self, host: u8) {
        self.run(&format!("ip link delete port{host}"));
    }

    /// Cuts the cable between the switches.
    pub(crate) fn cut(&self) {
        self.run("ip link set cable1 down");
    }

    pub(crate) fn mend(&self) {
        self.run("ip link set cable1 up");
    }

    fn enter(&self, host: Option<u8>) -> Vec<String> {
        let Some(keeper) = &self.keeper else { return Vec::new() };
        let keeper = format!("nsenter --target {} --user --net --mount --preserve-credentials", keeper.id());
        let host = host.map(|host| format!("nsenter --net=/run/netns/host{host}")).unwrap_or_default();
        [keeper, host].iter().flat_map(|part| part.split_whitespace()).map(str::to_owned).collect()
    }

    fn run(&self, script: &str) {
        let enter = self.enter(None);
        assert!(!enter.is_empty(), "only real hosts have interfaces");
        let output = process::Command::new(&enter[0]).args(&enter[1..]).args(["sh", "-ec", script]).output();
        let output = output.expect("nsenter runs");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts the process of a host, which finds others through the registry at this URL.
    pub(crate) fn host(&self, number: u8, url: &str) -> Host {
        let mut words = self.enter(Some(number));
        if on_path("setpriv").is_some() {
            words.extend(["setpriv", "--pdeathsig", "KILL"].map(str::to_owned));
        }
        words.push(env::current_exe().expect("the test knows its own program").to_str().expect("a path").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["--exact", "a_host_of_its_own", "--nocapture", "--test-threads", "1"]);
        if !self.is_real() {
            command.env(BIND, self.ip(number).to_string());
        }
        command.env(URL, url).env(NUMBER, number.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("the test program can be started again");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, seen) = watch::channel(Seen::default());
        let awake = self.awake.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((_, said)) = line.split_once(MARK) {
                    sender.send_modify(|seen| seen.take(said, awake.now()));
                }
            }
        });
        Host { number, input: child.stdin.take(), _child: child, seen, awake: self.awake.clone() }
    }
}

/// Makes the namespaces, or says why not.
fn keeper() -> Result<process::Child, String> {
    for program in ["unshare", "nsenter", "ip"] {
        on_path(program).ok_or_else(|| format!("there is no `{program}`"))?;
    }
    let mut command = process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-ec", SWITCHES]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut line = String::new();
    let _ = std::io::BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line);
    if line.trim() == "ready" {
        return Ok(child);
    }
    let mut why = String::new();
    let _ = child.kill();
    let _ = child.stderr.take().expect("a pipe").read_to_string(&mut why);
    let _ = child.wait();
    Err(why.trim().to_owned())
}

/// What a host has said last, and whom it lost when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) known: BTreeMap<u8, IpAddr>,
    pub(crate) lost: Vec<(u8, Duration)>,
    pub(crate) freshness: String,
    /// Of its registration.
    pub(crate) state: String,
    called: Vec<String>,
}

impl Seen {
    fn take(&mut self, said: &str, now: Duration) {
        let (what, rest) = said.split_once(' ').unwrap_or((said, ""));
        match what {
            "known" => {
                let mut words = rest.split_whitespace();
                self.freshness = words.next().unwrap_or_default().to_owned();
                let known: BTreeMap<u8, IpAddr> =
                    words.map(|word| word.parse::<SocketAddr>().expect("an address")).map(number_of).collect();
                let gone = self.known.keys().filter(|host| !known.contains_key(*host));
                self.lost.extend(gone.map(|host| (*host, now)));
                self.known = known;
            }
            "state" => self.state = rest.to_owned(),
            "called" => self.called.push(rest.to_owned()),
            _ => panic!("a host said {said:?}"),
        }
    }
}

fn number_of(addr: SocketAddr) -> (u8, IpAddr) {
    let last = match addr.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    };
    let number = addr.port().checked_sub(PORT).and_then(|number| u8::try_from(number).ok());
    (number.filter(|number| (1..10).contains(number)).unwrap_or(last), addr.ip())
}

/// A process on a host. Killed on drop.
pub(crate) struct Host {
    pub(crate) number: u8,
    input: Option<ChildStdin>,
    _child: Child,
    seen: watch::Receiver<Seen>,
    awake: Awake,
}

impl Host {
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until what it said fits.
    pub(crate) async fn until(&mut self, what: &str, fits: impl Fn(&Seen) -> bool) {
        let deadline = self.awake.now() + PATIENCE;
        while timeout(Awake::TICK, self.seen.wait_for(|seen| fits(seen))).await.is_err() {
            let said = self.seen();
            assert!(self.awake.now() < deadline, "host {}: waited for {what}, but it said {said:#?}", self.number);
        }
        assert!(fits(&self.seen.borrow()), "host {} has ended before {what}", self.number);
    }

    /// Waits until it knows these hosts and no others.
    pub(crate) async fn knows(&mut self, hosts: &[u8]) {
        let wanted: BTreeSet<u8> = hosts.iter().copied().collect();
        self.until(&format!("hosts {hosts:?}"), |seen| seen.known.keys().copied().eq(wanted.iter().copied())).await;
    }

    /// Whom it has lost since this time of the network.
    pub(crate) fn lost_since(&self, since: Duration) -> BTreeSet<u8> {
        self.seen().lost.into_iter().filter(|(_, at)| *at >= since).map(|(host, _)| host).collect()
    }

    /// Calls the service that they share many times, until all of these have answered: those who have just come warm up first. No
    /// call may fail, and nobody else may answer.
    pub(crate) async fn calls(&mut self, hosts: &[u8]) {
        let names: BTreeSet<String> = hosts.iter().map(|host| format!("host{host}")).collect();
        let mut answered = BTreeSet::new();
        let deadline = self.awake.now() + PATIENCE;
        while answered != names {
            let before = self.seen().called.len();
            self.input.as_mut().expect("it has not left").write_all(b"call\n").await.expect("it lives");
            self.until("its calls", |seen| seen.called.len() > before).await;
            let called = self.seen().called.pop().unwrap_or_default();
            answered.extend(called.split(' ').map(str::to_owned));
            assert!(answered.is_subset(&names), "host {} was answered by {answered:?}", self.number);
            assert!(self.awake.now() < deadline, "host {} was answered only by {answered:?}", self.number);
        }
    }

    /// Tells it to leave.
    pub(crate) fn leave(&mut self) {
        self.input = None;
    }
}

/// Is a host, if this process was started to be one.
pub(crate) fn main_if_asked() {
    let (Ok(url), Ok(number)) = (env::var(URL), env::var(NUMBER)) else { return };
    let number: u16 = number.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(&url, number));
    process::exit(0);
}

async fn run(url: &str, number: u16) {
    // A real host listens on all of its addresses and does not say which of them others shall use.
    let builder = Picom::builder("greeter").registry_url(url).drain_delay(Duration::ZERO);
    let builder = match env::var(BIND) {
        Ok(ip) => builder.bind(&ip),
        Err(_) => builder.port(PORT + number),
    };
    let node = builder.build().expect("a node");
    let mut watch = node.watch("greeter");
    tokio::spawn(async move {
        while let Some(snapshot) = watch.next().await {
            let known: Vec<String> = snapshot.endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect();
            let freshness = match snapshot.freshness {
                Freshness::Stale(_) => "Stale".to_owned(),
                other => format!("{other:?}"),
            };
            say(&format!("known {freshness} {}", known.join(" ")));
        }
    });
    let who = move |_cx: Context, (): ()| async move { Ok::<_, Status>(format!("host{number}")) };
    let mut exposed = node.expose(Methods::new().unary("who", who).idempotent()).await.expect("it is exposed");
    tokio::spawn(async move {
        let mut state = exposed.state();
        loop {
            say(&format!("state {state:?}"));
            state = exposed.changed().await;
        }
    });
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(_)) = input.next_line().await {
        let mut answers = BTreeSet::new();
        for _ in 0..CALLS {
            let answer = node.fetch::<String>("greeter", "who", args! {}).await;
            answers.insert(answer.unwrap_or_else(|error| error.to_string().replace('\n', " ")));
        }
        say(&format!("called {}", answers.into_iter().collect::<Vec<_>>().join(" ")));
    }
    node.end().await.expect("it leaves");
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A test that has gone hears nothing.
    let _ = writeln!(out, "{MARK}{text}").and_then(|()| out.flush());
}
