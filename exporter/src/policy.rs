//! Whether flows may be sent to a server: in a cluster, the `PodTapPolicy` tells.

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc, time::Duration};

use podtap_runtime::{permit, telemetry::with_causes};
use tokio::{task::spawn_blocking, time::Instant};

use crate::sinks::Failure;

/// Longer than the program takes to end.
const LAST: Duration = Duration::from_secs(60 * 60);

/// Asks `podtap-collector names` by its Unix socket. Without one, everything is allowed.
#[derive(Clone, Debug, Default)]
pub struct Policy(Option<Arc<Path>>);

/// The servers of a sink, each as a host and a port, and until when flows may be sent there.
#[derive(Debug)]
pub struct Permit {
    policy: Policy,
    servers: Arc<[(String, u16)]>,
    /// That of the last answer, also if it has passed.
    until: Option<Instant>,
    /// Addresses that are allowed.
    addresses: BTreeSet<IpAddr>,
    has_moved: bool,
}

impl Policy {
    pub fn new(socket: Option<&Path>) -> Self {
        Self(socket.map(Arc::from))
    }

    pub fn permit(self, servers: Vec<(String, u16)>) -> Permit {
        Permit { policy: self, servers: servers.into(), until: None, addresses: BTreeSet::new(), has_moved: false }
    }
}

impl Permit {
    /// Asks, if the last answer is too old.
    pub async fn renew(&mut self) -> Result<(), Failure> {
        let Some(socket) = self.policy.0.clone() else { return Ok(()) };
        if self.until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        self.until = None;
        let servers = Arc::clone(&self.servers);
        let asked = move || {
            let checked = servers.iter().map(|(host, port)| permit::check(&socket, host, *port));
            checked.collect::<Result<Vec<_>, _>>()
        };
        let answer = spawn_blocking(asked).await.map_err(|error| Failure::unavailable(error.to_string()))?;
        let addresses = answer.map_err(|refusal| Failure::unavailable(with_causes(&refusal).to_string()))?;
        let before = std::mem::replace(&mut self.addresses, addresses.into_iter().flatten().collect());
        self.has_moved |= !before.is_empty() && before != self.addresses;
        self.until = Some(Instant::now() + permit::AGE);
        Ok(())
    }

    /// Whether a server has other addresses than when this was called last: connections may be to those that it had.
    pub const fn has_moved(&mut self) -> bool {
        std::mem::replace(&mut self.has_moved, false)
    }

    /// Uses the last answer from now on, if it allowed what was asked: what answers ends, too.
    pub fn keep(&mut self) {
        if self.until.is_some() {
            self.until = Some(Instant::now() + LAST);
        }
    }
}
