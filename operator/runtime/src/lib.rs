//! What every program of `PodTap` that talks to Kubernetes shares: the connection to the API server, leader election, health and
//! metrics over HTTP, logs, and an orderly shutdown.

pub mod client;
#[cfg(feature = "test-util")]
pub mod fake_client;
pub mod http;
pub mod leader;
pub mod shutdown;
pub mod telemetry;

pub use podtap_backoff as backoff;
