//! A client of HTTPS servers on this machine: curl, so that another implementation of TLS has to agree.

use std::{
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

/// The name that certificates of tests are for.
pub const NAME: &str = "podtap-collector.podtap-system.svc";

/// Files of a certificate that signs itself. Removed when dropped.
pub struct Certificate(PathBuf);

impl Certificate {
    /// A certificate for [`NAME`].
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let certificate = Self(env::temp_dir().join(format!("podtap-tls-{}-{number}", process::id())));
        let pair = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        fs::create_dir_all(&certificate.0).expect("it can be created");
        fs::write(certificate.certificate(), pair.cert.pem()).expect("it can be written");
        fs::write(certificate.key(), pair.signing_key.serialize_pem()).expect("it can be written");
        certificate
    }

    /// The file of the certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.join("tls.crt")
    }

    /// The file of its key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.0.join("tls.key")
    }

    /// Status and body of the response to `GET path` of a server that has this certificate.
    ///
    /// # Errors
    /// If there is none.
    ///
    /// # Panics
    /// If curl does not run.
    pub fn get(&self, server: SocketAddr, path: &str, token: Option<&str>) -> Result<(u16, String), String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}", "--cacert"]);
        command.arg(self.certificate()).arg("--connect-to").arg(format!("::{server}"));
        if let Some(token) = token {
            command.arg("--header").arg(format!("Authorization: Bearer {token}"));
        }
        let output = command.arg(format!("https://{NAME}{path}")).output().expect("curl runs");
        let (body, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match body.rsplit_once('\n').map(|(body, status)| (status.parse(), body)) {
            Some((Ok(status), body)) if output.status.success() => Ok((status, body.to_owned())),
            _ => Err(errors.into_owned()),
        }
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
