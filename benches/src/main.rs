//! Measures picom beside raw sockets and other RPC frameworks. `picom-bench help` lists the commands.

#![allow(dead_code, unreachable_pub, reason = "filled by what comes next")]

mod peer;
mod peers;

fn main() {}
