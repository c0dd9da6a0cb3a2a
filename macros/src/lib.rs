//! `#[picom::service]`.
