//! The ways to mirror that are compared: PodTap, and its peers' as their own tools set them up.

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
    /// Throws it away before it has a cost: the figures are those of the pod's node alone.
    Drops,
    /// Takes it out of the tunnel and hands it to an interface, or to a program's memory.
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
    /// A VXLAN device in the pod and u32 filters with mirred, kokotap's way.
    Plain,
    /// tcpdump in the pod's network namespace, its output sent to another node over TCP, ksniff's way.
    Tcpdump,
}

impl Column {
    /// The product with fields of `spec` beside targets and destinations.
    pub fn podtap(name: &'static str, spec: Value) -> Self {
        Self::PodTap { name, spec, destination: json!({}) }
    }

    /// The product with a receiver that shows superframes: what others do to show frames as on the wire is a cost of its own.
    pub fn raw() -> Self {
        Self::PodTap { name: "PodTap, raw", spec: json!({}), destination: json!({"frameFormat": "Raw"}) }
    }

    /// What all comparisons with the peers have.
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
        let way = match self {
            Self::Untapped => Way::None,
            Self::PodTap { spec, destination, .. } => {
                Way::PodTap { _there: podtap::Tap::begin(stage, spec, destination)? }
            }
            Self::Plain => Way::Plain { _there: plain::Mirror::begin(stage)? },
            Self::Tcpdump => Way::Tcpdump(tcpdump::Sniffer::begin(stage, receiver)?),
        };
        let at_start = Counters::of(&stage.web, "eth0")?;
        let mut running = Running { dropped: None, way, stage, at_start };
        // Filters and samples may leave out what would be sent here.
        if !matches!(self, Self::PodTap { spec, .. } if *spec != json!({})) {
            running.prove()?;
        }
        if receiver == Receiver::Drops && matches!(running.way, Way::PodTap { .. } | Way::Plain { .. }) {
            running.dropped = Some(receiver::Drop::begin(stage)?);
        }
        Ok(running)
    }
}

/// A tapped pod (or one that is not, in the column of that name). Taken back when dropped.
pub struct Running<'a> {
    dropped: Option<receiver::Drop>,
    way: Way<'a>,
    stage: &'a Stage,
    /// What the pod's interface had counted when it began.
    at_start: Counters,
}

enum Way<'a> {
    None,
    PodTap { _there: podtap::Tap<'a> },
    Plain { _there: plain::Mirror },
    Tcpdump(tcpdump::Sniffer),
}

impl Running<'_> {
    /// Where mirrored frames come out of the tunnel, on n2.
    fn interface(&self) -> Option<&'static str> {
        match self.way {
            Way::PodTap { .. } => Some(podtap::INTERFACE),
            Way::Plain { .. } => Some(plain::INTERFACE),
            Way::None | Way::Tcpdump(_) => None,
        }
    }

    /// Counters of the receiver, for the ways that have an interface there.
    pub fn at_receiver(&self) -> Option<Result<Counters, String>> {
        self.interface().map(|interface| Counters::of(&self.stage.n2, interface))
    }

    /// Bytes of the capture that have arrived, for the way that sends one.
    pub fn capture_bytes(&self) -> Option<u64> {
        match &self.way {
            Way::Tcpdump(sniffer) => Some(sniffer.arrived()),
            _ => None,
        }
    }

    /// Seconds that the way's own program has spent outside of the kernel.
    pub fn user_time(&self) -> f64 {
        match &self.way {
            Way::Tcpdump(sniffer) => sniffer.user_time(),
            _ => 0.0,
        }
    }

    /// Ends the capture, and returns how many frames its kernel buffer has lost, for the way that has one.
    pub fn capture_losses(&mut self) -> Option<Result<u64, String>> {
        match &mut self.way {
            Way::Tcpdump(sniffer) => Some(sniffer.end()),
            _ => None,
        }
    }

    /// The same as a share of the pod's frames, in percent: a capture is fast when it may lose what it likes.
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

    /// That both directions arrive: a column that mirrors nothing would look very good.
    fn prove(&self) -> Result<(), String> {
        if matches!(self.way, Way::None) {
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

/// Takes away what a bench that was killed has left on the receivers' node; the rest goes with its pods.
pub fn sweep(n2: &Path) {
    receiver::sweep(n2);
    plain::sweep(n2);
}

fn ping(network: &Path, to: Ipv4Addr) -> Result<(), String> {
    bounded(network, 3, &["ping", "-q", "-c", "3", "-i", "0.01", "-s", "1000", &to.to_string()]).map(drop)
}
