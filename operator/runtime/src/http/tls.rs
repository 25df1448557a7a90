//! TLS of a server, with a certificate that may be replaced while the server runs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_rustls::rustls::{
    self, ServerConfig,
    crypto::ring::default_provider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};
use tracing::warn;

use crate::telemetry::with_causes;

/// How long a certificate is used without reading its files again.
const AGE: Duration = Duration::from_secs(10);

/// A server cannot use a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file is missing, or has no certificate or key.
    #[error("cannot read {} as PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The key is not that of the certificate, or of an unknown kind.
    #[error("cannot use the certificate {} with the key {}", certificate.display(), key.display())]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of its key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// The certificate of a server and its key, in PEM files.
///
/// The files are read again for a connection that comes more than 10 seconds after they were read last: who replaces them need not restart
/// the server. If they cannot be used then, as while they are being replaced, the server keeps what it has, and logs why.
#[derive(Debug)]
pub struct Certificate {
    /// The server's certificate, and then those of intermediate authorities.
    chain: PathBuf,
    key: PathBuf,
    age: Duration,
    current: Mutex<(Instant, Arc<ServerConfig>)>,
}

impl Certificate {
    /// Reads the files: a chain that begins with the server's certificate, and its key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        Self::load_with(certificate, key, AGE)
    }

    pub(super) fn load_with(certificate: &Path, key: &Path, age: Duration) -> Result<Self, CertificateError> {
        let current = Mutex::new((Instant::now(), Arc::new(read(certificate, key)?)));
        Ok(Self { chain: certificate.to_owned(), key: key.to_owned(), age, current })
    }

    /// For a new connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        let (at, config) = &mut *self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if at.elapsed() >= self.age {
            *at = Instant::now();
            match read(&self.chain, &self.key) {
                Ok(read) => *config = Arc::new(read),
                Err(error) => warn!(error = %with_causes(&error), "keeping the last certificate"),
            }
        }
        Arc::clone(config)
    }
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, CertificateError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        |source| CertificateError::File { path, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(unreadable(certificate))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
    let config =
        ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
    let config = config.and_then(|config| config.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|source| {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        CertificateError::Pair { certificate, key, source }
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
