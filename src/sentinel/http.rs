//! A look by HTTP.
//!
//! Owns the request and what its answer means. It must never follow what the answer says, nor read more than its head. Look
//! next at [`super`] for when it is made.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::{Client, RequestBuilder, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use super::Check;

fn parse(url: &str) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|error| format!("sentinel: the URL is wrong: {error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("sentinel: the URL must begin with http:// or https://".to_owned()),
    }
}

/// `host:port` of the URL.
pub(super) fn address(url: &str) -> Result<String, String> {
    let url = parse(url)?;
    match (url.host_str(), url.port_or_known_default()) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => Err("sentinel: the URL has no host".to_owned()),
    }
}

/// Asks at the address that a look has found, whatever else the name in the URL leads to.
pub(super) fn check(url: &str) -> Result<Check, String> {
    let url = parse(url)?;
    let wrong = |error: &dyn std::fmt::Display| format!("sentinel: no HTTP client: {error}");
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?;
    let mut tls = if url.scheme() == "https" {
        tls.with_platform_verifier().map_err(|error| wrong(&error))?.with_no_client_auth()
    } else {
        // Nothing will be verified, so the machine's certificates need not be read.
        tls.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A client knows one address of a host; there is another one when the host has moved.
    let clients: Mutex<Option<(SocketAddr, Client)>> = Mutex::new(None);
    let request = move |addr: SocketAddr| {
        let mut known = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = known.as_ref().filter(|(at, _)| *at == addr) {
            return Ok(client.get(url.clone()));
        }
        let client = client(&url, addr, tls.clone()).map_err(|error| wrong(&error))?;
        let (_, client) = known.insert((addr, client));
        Ok(client.get(url.clone()))
    };
    Ok(Arc::new(move |addr| {
        let request: Result<RequestBuilder, String> = request(addr);
        Box::pin(async move {
            let answer = request?.send().await.map_err(|error| innermost(&error))?;
            let status = answer.status();
            if status.is_success() { Ok(()) } else { Err(format!("answered {status}")) }
        })
    }))
}

fn client(url: &Url, addr: SocketAddr, tls: ClientConfig) -> reqwest::Result<Client> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirect::Policy::none())
        // A kept connection would not tell whether new ones are accepted.
        .pool_max_idle_per_host(0)
        .resolve(url.host_str().unwrap_or_default(), addr)
        .build()
}

/// The reason that helps: `Connection refused`.
fn innermost(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
