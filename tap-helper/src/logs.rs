//! Logs, in the format of agent and controller.

use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT: &str = "info";

/// Sends logs to standard error, as lines for people or as JSON.
///
/// `RUST_LOG` sets the level, also per module, as in `info,tap_helper=debug`.
pub fn init_logs(json: bool) {
    let requested = std::env::var("RUST_LOG").ok().filter(|requested| !requested.trim().is_empty());
    let filter: Option<Targets> = requested.as_deref().unwrap_or(DEFAULT).parse().ok();
    let rejected = filter.is_none();
    let filter = filter.or_else(|| DEFAULT.parse().ok()).unwrap_or_default();
    let logs = fmt::layer().with_writer(std::io::stderr);
    if json {
        tracing_subscriber::registry().with(logs.json().flatten_event(true).with_filter(filter)).init();
    } else {
        tracing_subscriber::registry().with(logs.with_filter(filter)).init();
    }
    if rejected {
        tracing::warn!(RUST_LOG = requested, "not a list of target=level; using {DEFAULT}");
    }
}
