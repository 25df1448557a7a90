//! What the PodTap programs that talk to Kubernetes share: the API client and the API server's clock, leader election, health and
//! metrics over HTTP, logging, shutdown, backoff, sockets between containers, whether another program allows a connection, and the protection of secrets in memory.
//!
//! Nothing here knows the PodTap kinds. All of it runs on a tokio runtime, current-thread or multi-thread.

pub mod client;
pub mod clock;
#[cfg(feature = "test-util")]
pub mod fake_client;
pub mod http;
pub mod leader;
pub mod memory;
pub mod permit;
pub mod shutdown;
pub mod socket;
pub mod telemetry;

pub use podtap_backoff as backoff;
