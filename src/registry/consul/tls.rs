//! The TLS side of talking to Consul.
//!
//! Owns the making of a rustls configuration. It must never rely on a process-wide crypto provider, because two
//! libraries in one program may disagree on it. Look next at `http.rs`.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use super::settings::{Settings, bad};
use crate::registry::RegistryError;

/// A client configuration that trusts the given CA, or what the machine trusts, and shows the given certificate.
pub(super) fn config(settings: &Settings) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(format!("TLS: {error}")))?;
    let builder = if let Some(path) = &settings.ca_cert {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path, "CA certificate")? {
            roots.add(certificate).map_err(|error| unusable("CA certificate", path, &error))?;
        }
        builder.with_root_certificates(roots)
    } else if settings.address.starts_with("https:") {
        builder.with_platform_verifier().map_err(|error| bad(format!("the machine's CA certificates: {error}")))?
    } else {
        // Nothing will be verified, so the machine's certificates need not be read.
        builder.with_root_certificates(RootCertStore::empty())
    };
    let mut config = match (&settings.client_cert, &settings.client_key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert, "client certificate")?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("client key", key, &error))?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| unusable("client certificate", cert, &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(what, path, &error))?;
    if certificates.is_empty() {
        return Err(unusable(what, path, &"the file holds no PEM certificate"));
    }
    Ok(certificates)
}

fn unusable(what: &str, path: &Path, error: &dyn std::fmt::Display) -> RegistryError {
    bad(format!("{what} {}: {error}", path.display()))
}
