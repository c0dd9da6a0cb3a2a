//! Which addresses a service can be called at, whoever says that it is there.
//!
//! Owns one question. It must never look a name up. Look next at `consul/entries.rs` and `manifest/record.rs` for who asks.

use std::net::{IpAddr, Ipv4Addr};

/// The address, if a service can be there. Addresses that only make sense on one's own link are refused, because
/// cloud machines hand out credentials at one of them.
pub(super) fn usable(ip: IpAddr) -> Result<IpAddr, &'static str> {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if link_local {
        Err("link-local")
    } else if ip.is_unspecified() {
        Err("unspecified")
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Err("not the address of one machine")
    } else {
        Ok(ip)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_of_one_machine_is_usable() {
        let usable = |text: &str| usable(text.parse().unwrap()).map(|ip| ip.to_string());
        for (text, same) in [
            ("10.0.0.7", "10.0.0.7"),
            ("127.0.0.1", "127.0.0.1"),
            ("169.253.255.255", "169.253.255.255"),
            ("fd00::7", "fd00::7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
        ] {
            assert_eq!(usable(text).as_deref(), Ok(same));
        }
        for (texts, why) in [
            (&["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"][..], "link-local"),
            (&["0.0.0.0", "::", "::ffff:0.0.0.0"], "unspecified"),
            (&["224.0.0.1", "255.255.255.255", "ff02::1"], "not the address of one machine"),
        ] {
            for text in texts {
                assert_eq!(usable(text), Err(why), "{text}");
            }
        }
    }
}
