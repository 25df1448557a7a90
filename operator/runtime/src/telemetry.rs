//! Logging.

use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// The filter without `RUST_LOG`. kube logs a line per failed request that has less context than ours.
const DEFAULT: &str = "info,kube_client::client::builder=off";

/// Crates that handle tokens and keys, and print data that passes through them at their lowest levels.
const TRANSPORT: [&str; 5] = ["h2", "hyper", "hyper_util", "rustls", "tower"];

/// The logging options of every program.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct LogArgs {
    /// Write logs as JSON, one object per line.
    #[arg(long, global = true, env = "PODTAP_LOG_JSON", value_parser = clap::builder::BoolishValueParser::new())]
    log_json: bool,
}

impl LogArgs {
    /// Sends logs to standard error, as plain lines or as JSON. Panics if it is called twice.
    ///
    /// `RUST_LOG` selects targets and levels, for example `info,podtap_controller=debug`; an invalid value is logged and ignored. No
    /// value exposes secrets: the crates that handle them never log below `info`.
    pub fn init(self) {
        let requested = std::env::var("RUST_LOG").ok().filter(|requested| !requested.trim().is_empty());
        let filter = filter(requested.as_deref().unwrap_or(DEFAULT));
        let rejected = filter.is_none();
        let filter = filter.or_else(|| self::filter(DEFAULT)).unwrap_or_default();
        let logs = fmt::layer().with_writer(std::io::stderr);
        if self.log_json {
            tracing_subscriber::registry().with(logs.json().flatten_event(true).with_filter(filter)).init();
        } else {
            tracing_subscriber::registry().with(logs.with_filter(filter)).init();
        }
        if rejected {
            tracing::warn!(RUST_LOG = requested, "RUST_LOG is not a list of target=level; using {DEFAULT}");
        }
    }
}

fn filter(directives: &str) -> Option<Targets> {
    let filter: Targets = directives.parse().ok()?;
    let filter = filter.with_targets(TRANSPORT.map(|target| (target, tracing::Level::INFO)));
    // Its warnings have answers that it cannot read, and those to reviews have tokens.
    Some(filter.with_target("kube_client::client", tracing::Level::ERROR))
}

/// An error and its causes in one line, separated by colons.
pub fn with_causes(error: &dyn std::error::Error) -> impl std::fmt::Display {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn no_filter_exposes_secrets() {
        let filter = filter("trace").expect("a level is a filter");
        assert!(filter.would_enable("podtap_agent::helper_client", &Level::TRACE));
        for target in
            ["hyper::proto::h1::conn", "rustls::client::hs", "tower::buffer::worker", "hyper_util::client::legacy"]
        {
            assert!(!filter.would_enable(target, &Level::DEBUG), "{target}");
            assert!(filter.would_enable(target, &Level::INFO), "{target}");
        }
    }

    #[test]
    fn the_default_is_a_filter() {
        let filter = filter(DEFAULT).expect("the default parses");
        assert!(filter.would_enable("podtap_controller", &Level::INFO));
        assert!(!filter.would_enable("podtap_controller", &Level::DEBUG));
        assert!(!filter.would_enable("kube_client::client::builder", &Level::ERROR));
    }

    #[test]
    fn an_invalid_filter_is_rejected() {
        assert!(filter("a=b=c").is_none());
    }
}
