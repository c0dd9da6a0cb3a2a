//! Moleculer on Node.js, as the original of what picom is for: a program of its own, which this process becomes.
//!
//! Owns the installation, below the build directory, at first use. Must never hide why it could not be installed, nor that it
//! failed later. Next: `moleculer/peer.js`.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::workloads::Plan;

/// Its name in the results.
pub(crate) const NAME: &str = "moleculer";

const DIRECTORY: &str = concat!(env!("OUT_DIR"), "/moleculer");
const PROGRAM: &str = include_str!("../../moleculer/peer.js");
const PACKAGE: &str = include_str!("../../moleculer/package.json");
const LOCK: &str = include_str!("../../moleculer/package-lock.json");

/// Written last, so that an installation that was cut short is made again.
const INSTALLED: &str = "installed.json";

/// Installs it unless it is there; or why it cannot be.
pub(crate) fn install() -> Result<(), String> {
    let directory = Path::new(DIRECTORY);
    for program in ["node", "npm"] {
        said(Command::new(program).arg("--version"))?;
    }
    let write = |name: &str, text: &str| {
        fs::create_dir_all(directory).and_then(|()| fs::write(directory.join(name), text)).map_err(|e| e.to_string())
    };
    write("peer.js", PROGRAM)?;
    if fs::read_to_string(directory.join(INSTALLED)).is_ok_and(|installed| installed == LOCK) {
        return Ok(());
    }
    write("package.json", PACKAGE)?;
    write("package-lock.json", LOCK)?;
    said(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(directory))?;
    write(INSTALLED, LOCK)
}

/// Runs it; or what it said, and that is why it failed.
fn said(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{:?}: {error}", command.get_program())),
    }
}

/// A server, which prints its address.
pub(crate) fn server() -> Command {
    node(&["serve"])
}

/// One workload.
pub(crate) fn client(workload: &str, mode: &str, plan: &Plan) -> Command {
    let server = plan.server.map(|server| server.to_string()).unwrap_or_default();
    let seconds = plan.measured.as_secs_f64().to_string();
    node(&["load", workload, mode, &plan.address.to_string(), &seconds, &server])
}

fn node(arguments: &[&str]) -> Command {
    let mut command = Command::new("node");
    command.arg(Path::new(DIRECTORY).join("peer.js")).args(arguments);
    command
}

/// Becomes that program: the same process, on the same cores, with the same parent.
pub(crate) fn become_it(mut command: Command) -> ! {
    if let Err(reason) = install() {
        eprintln!("{NAME}: {reason}");
        std::process::exit(1);
    }
    panic!("{command:?}: {}", command.exec());
}
