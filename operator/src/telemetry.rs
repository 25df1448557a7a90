//! Logs.

use tracing_subscriber::EnvFilter;

/// Sends logs to standard error; `RUST_LOG` chooses what, `info` by default.
pub fn init_logs(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { logs.json().init() } else { logs.init() }
}
