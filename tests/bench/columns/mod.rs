//! The compared methods of mirroring: PodTap, and those of similar tools as these set them up.

mod ipv6;
mod plain;
mod podtap;
mod reader;
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
    table::{PLAIN, PRODUCT, RAW, READ, UNTAPPED},
};

/// UDP destination ports of mirrored frames.
pub const PODTAP_PORT: u16 = 14789;
pub const PLAIN_PORT: u16 = 4789;

/// What the receiving node does with mirrored frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Drops them on arrival, so that only the cost on the pod's node is measured.
    Drops,
    /// Decapsulates them and delivers them to an interface, or to a program's memory.
    Decapsulates,
}

/// A column of the tables.
#[derive(Clone, Debug)]
pub enum Column {
    Untapped,
    /// PodTap, with these fields of the tap's `spec` and of its destination.
    PodTap {
        name: &'static str,
        spec: Value,
        destination: Value,
        /// Whether tcpdump reads the receiver's interface.
        read: bool,
    },
    /// PodTap with an external destination whose address is of IPv6.
    Ipv6,
    /// A VXLAN device in the pod and u32 filters with mirred, as kokotap sets them up.
    Plain,
    /// tcpdump in the pod's network namespace, its output sent to another node over TCP, similar to ksniff.
    Tcpdump,
}

impl Column {
    /// PodTap with fields of `spec` other than targets and destinations.
    pub fn podtap(name: &'static str, spec: Value) -> Self {
        Self::PodTap { name, spec, destination: json!({}), read: false }
    }

    /// PodTap with raw frames at the receiver, which avoids the cost of segmentation there.
    pub fn raw() -> Self {
        Self::PodTap { name: RAW, spec: json!({}), destination: json!({"frameFormat": "Raw"}), read: false }
    }

    /// PodTap with a reader at the receiver.
    pub fn read() -> Self {
        Self::PodTap { name: READ, spec: json!({}), destination: json!({}), read: true }
    }

    /// The same with the receiver on the pod's node.
    pub fn on_the_pods_node(self) -> Self {
        match self {
            Self::PodTap { name, spec, mut destination, read } => {
                destination["node"] = json!({"name": "n1", "interfaceName": podtap::INTERFACE});
                Self::PodTap { name, spec, destination, read }
            }
            other => other,
        }
    }

    /// The columns of all comparisons with other tools.
    pub fn all() -> Vec<Self> {
        vec![Self::Untapped, Self::podtap(PRODUCT, json!({})), Self::Plain, Self::Tcpdump]
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Untapped => UNTAPPED,
            Self::PodTap { name, .. } => name,
            Self::Ipv6 => "PodTap, IPv6",
            Self::Plain => PLAIN,
            Self::Tcpdump => "tcpdump over TCP",
        }
    }

    /// Starts mirroring, and returns when frames arrive.
    pub fn begin<'a>(&self, stage: &'a Stage, receiver: Receiver) -> Result<Running<'a>, String> {
        let start = Instant::now();
        let method = match self {
            Self::Untapped => Method::None,
            Self::PodTap { spec, destination, read, .. } => {
                let guard = podtap::Tap::begin(stage, spec, destination)?;
                let network = if destination["node"]["name"] == "n1" { &stage.n1 } else { &stage.n2 };
                let reader = read.then(|| reader::Reader::begin(network, podtap::INTERFACE)).transpose()?;
                Method::PodTap { _reader: reader, _guard: guard, _underlay: None, network }
            }
            Self::Ipv6 => {
                let underlay = ipv6::Underlay::begin(stage)?;
                let guard = podtap::Tap::begin(stage, &json!({"vxlan": {"vni": ipv6::VNI}}), &ipv6::destination())?;
                Method::PodTap { _reader: None, _guard: guard, _underlay: Some(underlay), network: &stage.n2 }
            }
            Self::Plain => Method::Plain { _guard: plain::Mirror::begin(stage)? },
            Self::Tcpdump => Method::Tcpdump(tcpdump::Sniffer::begin(stage, receiver)?),
        };
        let ready_after = start.elapsed();
        let at_start = Counters::of(&stage.web, "eth0")?;
        let mut running = Running { dropped: None, method, stage, ready_after, at_start };
        // With filters or sampling, the probe may not be mirrored.
        if !matches!(self, Self::PodTap { spec, .. } if *spec != json!({})) {
            running.verify()?;
        }
        if receiver == Receiver::Drops && matches!(running.method, Method::PodTap { .. } | Method::Plain { .. }) {
            running.dropped = Some(receiver::Drop::begin(stage)?);
        }
        Ok(running)
    }
}

/// A pod that is being mirrored (or not, in the column `untapped`). Ended when dropped.
pub struct Running<'a> {
    dropped: Option<receiver::Drop>,
    method: Method<'a>,
    stage: &'a Stage,
    /// How long it took to set up.
    pub ready_after: Duration,
    /// Counters of the pod's interface at the start.
    at_start: Counters,
}

enum Method<'a> {
    None,
    PodTap {
        _reader: Option<reader::Reader>,
        _guard: podtap::Tap<'a>,
        /// Dropped after the tap.
        _underlay: Option<ipv6::Underlay>,
        /// Where the receiver is.
        network: &'a Path,
    },
    Plain {
        _guard: plain::Mirror,
    },
    Tcpdump(tcpdump::Sniffer),
}

impl Running<'_> {
    /// The interface that receives mirrored frames, and its network namespace.
    fn interface(&self) -> Option<(&Path, &'static str)> {
        match self.method {
            Method::PodTap { network, .. } => Some((network, podtap::INTERFACE)),
            Method::Plain { .. } => Some((&self.stage.n2, plain::INTERFACE)),
            Method::None | Method::Tcpdump(_) => None,
        }
    }

    /// Counters of the receiver, for methods with an interface there.
    pub fn at_receiver(&self) -> Option<Result<Counters, String>> {
        self.interface().map(|(network, interface)| Counters::of(network, interface))
    }

    /// Bytes of the capture that arrived, for the method that sends one.
    pub fn capture_bytes(&self) -> Option<u64> {
        match &self.method {
            Method::Tcpdump(sniffer) => Some(sniffer.arrived()),
            _ => None,
        }
    }

    /// Seconds that the method's program has spent in user space.
    pub fn user_time(&self) -> f64 {
        match &self.method {
            Method::Tcpdump(sniffer) => sniffer.user_time(),
            _ => 0.0,
        }
    }

    /// Ends the capture, and returns how many frames it lost, for the method that has one.
    pub fn capture_losses(&mut self) -> Option<Result<u64, String>> {
        match &mut self.method {
            Method::Tcpdump(sniffer) => Some(sniffer.end()),
            _ => None,
        }
    }

    /// Ends the capture, and returns the lost frames in percent of the pod's frames: a capture that loses frames is fast.
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

    /// Verifies that frames of both directions arrive: a column that mirrors nothing would look very good.
    fn verify(&self) -> Result<(), String> {
        if matches!(self.method, Method::None) {
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
                return Err(format!("no mirrored frames arrive: {arrived} bytes"));
            }
        }
    }
}

/// Removes what a killed bench left on the receivers' node; the rest is deleted with its pods.
pub fn clean_up(n2: &Path) {
    receiver::clean_up(n2);
    plain::clean_up(n2);
}

fn ping(network: &Path, to: Ipv4Addr) -> Result<(), String> {
    bounded(network, 3, &["ping", "-q", "-c", "3", "-i", "0.01", "-s", "1000", &to.to_string()]).map(drop)
}
