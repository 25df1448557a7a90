//! Whether flows may be sent to a server: in a cluster, the `PodTapPolicy` tells.

use std::{path::Path, sync::Arc};

use podtap_runtime::{permit, telemetry::with_causes};
use tokio::{task::spawn_blocking, time::Instant};

use crate::sinks::Failure;

/// Asks `podtap-collector names` by its Unix socket. Without one, everything is allowed.
#[derive(Clone, Debug, Default)]
pub struct Policy(Option<Arc<Path>>);

/// The servers of a sink, each as a host and a port, and until when flows may be sent there.
#[derive(Debug)]
pub struct Permit {
    policy: Policy,
    servers: Arc<[(String, u16)]>,
    until: Option<Instant>,
}

impl Policy {
    pub fn new(socket: Option<&Path>) -> Self {
        Self(socket.map(Arc::from))
    }

    pub fn permit(self, servers: Vec<(String, u16)>) -> Permit {
        Permit { policy: self, servers: servers.into(), until: None }
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
        let asked = move || servers.iter().try_for_each(|(host, port)| permit::check(&socket, host, *port));
        let answer = spawn_blocking(asked).await.map_err(|error| Failure::unavailable(error.to_string()))?;
        answer.map_err(|refusal| Failure::unavailable(with_causes(&refusal).to_string()))?;
        self.until = Some(Instant::now() + permit::AGE);
        Ok(())
    }
}
