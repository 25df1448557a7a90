//! The mirrors that are compared: PodTap's, and those of other tools as they set them up.

mod plain;
mod podtap;
mod receiver;
mod tcpdump;

use std::{
    net::Ipv4Addr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    counters::Counters,
    programs::bounded,
    stage::Stage,
    table::{PLAIN, PRODUCT, UNTAPPED},
};

/// UDP ports that mirrors send to.
pub const PODTAP_PORT: u16 = 14789;
pub const PLAIN_PORT: u16 = 4789;

/// What the receiving node does with what arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Drops it as early as possible: the figures are those of the pod's node alone.
    Drops,
    /// Decapsulates it and delivers it to an interface, or to a program's memory.
    Decapsulates,
}

/// A column of the tables.
#[derive(Clone, Debug)]
pub enum Column {
    Untapped,
    /// With these fields of the tap's `spec`, and of its destination.
    PodTap {
        name: &'static str,
        spec: Value,
        destination: Value,
    },
    /// A VXLAN device in the pod and u32 filters with mirred, like kokotap.
    Plain,
    /// tcpdump in the pod's network namespace, its output sent to another node over TCP, like ksniff.
    Tcpdump,
}

impl Column {
    /// The product with fields of `spec` beside targets and destinations.
    pub fn podtap(name: &'static str, spec: Value) -> Self {
        Self::PodTap { name, spec, destination: json!({}) }
    }

    /// The product with a raw receiver, which shows GSO packets: showing frames as on the wire has a cost of its own.
    pub fn raw() -> Self {
        Self::PodTap { name: "PodTap, raw", spec: json!({}), destination: json!({"frameFormat": "Raw"}) }
    }

    /// The columns of all comparisons with other tools.
    pub fn all() -> Vec<Self> {
        vec![Self::Untapped, Self::podtap(PRODUCT, json!({})), Self::Plain, Self::Tcpdump]
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Untapped => UNTAPPED,
            Self::PodTap { name, .. } => name,
            Self::Plain => PLAIN,
            Self::Tcpdump => "tcpdump over TCP",
        }
    }

    /// Taps the pod, and returns when its frames arrive.
    pub fn begin<'a>(&self, stage: &'a Stage, receiver: Receiver) -> Result<Running<'a>, String> {
        let mirror = match self {
            Self::Untapped => Mirror::None,
            Self::PodTap { spec, destination, .. } => {
                Mirror::PodTap { _tap: podtap::Tap::begin(stage, spec, destination)? }
            }
            Self::Plain => Mirror::Plain { _tap: plain::Mirror::begin(stage)? },
            Self::Tcpdump => Mirror::Tcpdump(tcpdump::Sniffer::begin(stage, receiver)?),
        };
        let at_start = Counters::of(&stage.web, "eth0")?;
        let mut running = Running { dropped: None, mirror, stage, at_start };
        // Filters and sampling may exclude what would be sent here.
        if !matches!(self, Self::PodTap { spec, .. } if *spec != json!({})) {
            running.prove()?;
        }
        if receiver == Receiver::Drops && matches!(running.mirror, Mirror::PodTap { .. } | Mirror::Plain { .. }) {
            running.dropped = Some(receiver::Drop::begin(stage)?);
        }
        Ok(running)
    }
}

/// A tapped pod, or an untapped one in the column of that name. The tap is removed when dropped.
pub struct Running<'a> {
    dropped: Option<receiver::Drop>,
    mirror: Mirror<'a>,
    stage: &'a Stage,
    /// The counters of the pod's interface at the start.
    at_start: Counters,
}

enum Mirror<'a> {
    None,
    PodTap { _tap: podtap::Tap<'a> },
    Plain { _tap: plain::Mirror },
    Tcpdump(tcpdump::Sniffer),
}

impl Running<'_> {
    /// The interface on n2 that receives mirrored frames.
    fn interface(&self) -> Option<&'static str> {
        match self.mirror {
            Mirror::PodTap { .. } => Some(podtap::INTERFACE),
            Mirror::Plain { .. } => Some(plain::INTERFACE),
            Mirror::None | Mirror::Tcpdump(_) => None,
        }
    }

    /// Counters of the receiver, for mirrors that have an interface there.
    pub fn at_receiver(&self) -> Option<Result<Counters, String>> {
        self.interface().map(|interface| Counters::of(&self.stage.n2, interface))
    }

    /// Bytes of the capture that have arrived, for the mirror that sends one.
    pub fn capture_bytes(&self) -> Option<u64> {
        match &self.mirror {
            Mirror::Tcpdump(sniffer) => Some(sniffer.arrived()),
            _ => None,
        }
    }

    /// Seconds that the mirror's own program has spent outside of the kernel.
    pub fn user_time(&self) -> f64 {
        match &self.mirror {
            Mirror::Tcpdump(sniffer) => sniffer.user_time(),
            _ => 0.0,
        }
    }

    /// Ends the capture, and returns how many frames its kernel buffer has lost, for the mirror that has one.
    pub fn capture_losses(&mut self) -> Option<Result<u64, String>> {
        match &mut self.mirror {
            Mirror::Tcpdump(sniffer) => Some(sniffer.end()),
            _ => None,
        }
    }

    /// The same as a percentage of the pod's frames: a capture that loses frames is fast.
    pub fn capture_loss(&mut self) -> Option<Result<f64, String>> {
        let lost = self.capture_losses()?;
        let frames = Counters::of(&self.stage.web, "eth0").map(|now| now.since(self.at_start).packets());
        #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
        let share = |lost: u64, frames: u64| 100.0 * lost as f64 / frames.max(1) as f64;
        Some(lost.and_then(|lost| frames.map(|frames| share(lost, frames))))
    }

    fn arrived(&self) -> Result<u64, String> {
        match (self.at_receiver(), self.capture_bytes()) {
            (Some(counters), _) => counters.map(|c| c.rx_bytes),
            (None, bytes) => Ok(bytes.unwrap_or_default()),
        }
    }

    /// Fails unless both directions arrive: a mirror of nothing would look very good.
    fn prove(&self) -> Result<(), String> {
        if matches!(self.mirror, Mirror::None) {
            return Ok(());
        }
        let (before, start) = (self.arrived()?, Instant::now());
        loop {
            ping(&self.stage.web, self.stage.peer_address)?;
            thread::sleep(Duration::from_millis(20));
            let arrived = self.arrived()? - before;
            if arrived >= 6 * 1000 {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(5) {
                return Err(format!("the mirror carries nothing: {arrived} bytes"));
            }
        }
    }
}

/// Removes what a killed bench has left behind on the receivers' node; the rest is removed with its pods.
pub fn sweep(n2: &Path) {
    receiver::sweep(n2);
    plain::sweep(n2);
}

fn ping(network: &Path, to: Ipv4Addr) -> Result<(), String> {
    bounded(network, 3, &["ping", "-q", "-c", "3", "-i", "0.01", "-s", "1000", &to.to_string()]).map(drop)
}
