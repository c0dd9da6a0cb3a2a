//! Measures picom beside raw sockets and other RPC frameworks. `picom-bench help` lists the commands.

#![allow(dead_code, unreachable_pub, reason = "filled by what comes next")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure must end the run")]

mod peer;
mod peers;

fn main() {}
