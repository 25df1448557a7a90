//! Flags for the fields of a tap, besides its pods.

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use ipnet::IpNet;
use podtap_api::{MirrorSpec, Vxlan};
use podtap_model::{
    Deduplicate, Direction, Filter, FrameFormat, Handshakes, Limit, Match, MirrorOptions, Oversize, PortRange,
    Protocol, Quantity, Sample, Truncate, Vni, bounds::DESTINATIONS,
};

use crate::{
    complete,
    connection::duration,
    destination::{Manner, To, destinations},
    exit::{Failure, Outcome},
};

/// Which frames, and how much of them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What is mirrored")]
pub struct FrameFlags {
    /// Frames that enter the pods, that leave them, or both
    #[arg(long, value_name = "DIRECTION", value_enum, default_value_t = DirectionFlag::Both)]
    pub direction: DirectionFlag,
    /// Only these protocols: tcp, udp, sctp, icmp, icmpv6
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', value_enum)]
    pub protocol: Vec<ProtocolFlag>,
    /// Only these ports, source or destination, for example 443,8000-8100
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = ports)]
    pub port: Vec<PortRange>,
    /// Only frames from and to these networks, for example 10.0.0.0/8
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    pub cidr: Vec<IpNet>,
    /// Without these protocols
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', value_enum)]
    pub exclude_protocol: Vec<ProtocolFlag>,
    /// Without these ports
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = ports)]
    pub exclude_port: Vec<PortRange>,
    /// Without frames from and to these networks
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    pub exclude_cidr: Vec<IpNet>,
    /// Only frames that match this expression of tcpdump, for example 'tcp[tcpflags] & tcp-syn != 0'
    #[arg(long, value_name = "EXPRESSION")]
    #[expect(rustdoc::broken_intra_doc_links, reason = "--help shows the brackets of the example as they are")]
    pub filter: Option<String>,
    /// Only the first bytes of each frame, from the Ethernet header
    #[arg(long, value_name = "N", conflicts_with = "headers_only")]
    pub bytes: Option<u32>,
    /// Only the headers of each frame
    #[arg(long)]
    pub headers_only: bool,
    /// With --bytes or --headers-only: bytes at the beginning of each flow that are mirrored whole, for example 4Ki
    #[arg(long, value_name = "N", value_parser = small_quantity)]
    pub exempt_bytes: Option<u32>,
    /// One in N flows, whole
    #[arg(long, value_name = "N")]
    pub one_in: Option<u32>,
    /// Most bits per second of each pod, for example 100M
    #[arg(long, value_name = "BITS")]
    pub rate: Option<Quantity>,
    /// Most frames per second of each pod, for example 10k
    #[arg(long, value_name = "FRAMES")]
    pub pps: Option<Quantity>,
    /// Most bytes of each direction of a flow, for example 1Mi; only headers after that
    #[arg(long, value_name = "BYTES")]
    pub bytes_per_flow: Option<Quantity>,
    /// Each flow between two of the pods once; with =both, but its handshake at both ends
    #[arg(long, value_name = "HANDSHAKES", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "once")]
    pub dedup: Option<HandshakesFlag>,
    /// What happens to frames that exceed the path MTU and cannot be segmented
    #[arg(long, value_name = "HOW", value_enum, default_value_t = OversizeFlag::Fragment)]
    pub oversize: OversizeFlag,
}

/// Which frames, how much of them, and where to.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What is mirrored, and where to")]
#[expect(clippy::struct_excessive_bools, reason = "flags are independent of each other")]
pub struct MirrorFlags {
    /// Destination: node/NAME[:INTERFACE], pod/NAME[:INTERFACE], pods/SELECTOR[:INTERFACE], IP[:PORT] or collector. Can be repeated, up to
    /// four times; NAME= before it names the destination
    #[arg(long, value_name = "DEST", required = true, add = ArgValueCompleter::new(complete::destinations))]
    #[expect(rustdoc::broken_intra_doc_links, reason = "--help shows the brackets as they are")]
    pub to: Vec<To>,
    #[command(flatten)]
    pub frames: FrameFlags,
    /// How interfaces on nodes and in pods show the frames: as on the wire, or as the kernel has them
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = FormatFlag::Wire)]
    pub frame_format: FormatFlag,
    /// Send probes to external endpoints, too
    #[arg(long)]
    pub probe: bool,
    /// Send metadata to external endpoints, too: which pod the frames are of
    #[arg(long)]
    pub metadata: bool,
    /// Hand a packet socket to the pods that receive, for programs without the capability `NET_RAW`
    #[arg(long)]
    pub packet_socket: bool,
    /// VXLAN network identifier. Default: a free one
    #[arg(long, value_name = "N", value_parser = vni)]
    pub vni: Option<Vni>,
    /// How long frames are mirrored, for example 5m or 1h30m. Default: until the tap is deleted
    #[arg(long = "for", value_name = "TIME", value_parser = |text: &str| duration(text).map(kube::core::Duration::from))]
    pub duration: Option<kube::core::Duration>,
    /// Create the tap, and mirror nothing until it is resumed
    #[arg(long)]
    pub suspend: bool,
}

/// A flag whose values are those of a type of the model, in lower case.
macro_rules! flag {
    ($name:ident, $model:ty, $doc:literal, $($variant:ident),+) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        #[value(rename_all = "lower")]
        pub enum $name { $($variant),+ }

        impl From<$name> for $model {
            fn from(flag: $name) -> Self {
                match flag {
                    $($name::$variant => Self::$variant),+
                }
            }
        }
    };
}

flag!(DirectionFlag, Direction, "A direction.", Both, Ingress, Egress);
flag!(ProtocolFlag, Protocol, "A protocol.", Tcp, Udp, Sctp, Icmp, Icmpv6);
flag!(HandshakesFlag, Handshakes, "At how many ends the handshake of a flow is mirrored.", Once, Both);
flag!(OversizeFlag, Oversize, "What happens to oversized frames.", Fragment, Truncate);
flag!(FormatFlag, FrameFormat, "How interfaces show frames.", Wire, Raw);

impl MirrorFlags {
    /// The part of the spec that these flags are about.
    pub fn spec(self) -> Outcome<MirrorSpec> {
        let options = self.frames.options()?;
        if !DESTINATIONS.contains(&self.to.len()) {
            return Err(Failure::usage(format!("--to may be repeated up to {} times", DESTINATIONS.end())));
        }
        let manner = Manner {
            frame_format: self.frame_format.into(),
            probe: self.probe,
            metadata: self.metadata,
            packet_socket: self.packet_socket,
        };
        let destinations = destinations(self.to, manner);
        let has_external = destinations.iter().any(|destination| destination.external.is_some());
        if (self.probe || self.metadata) && !has_external {
            return Err(Failure::usage(
                "--probe and --metadata are about external destinations: add --to IP[:PORT], or leave them out",
            ));
        }
        if self.packet_socket && destinations.iter().all(|destination| destination.pod.is_none()) {
            return Err(Failure::usage("--packet-socket is about pods: add --to pod/NAME, or leave it out"));
        }
        if !FrameFormat::from(self.frame_format).is_wire()
            && destinations.iter().all(|destination| destination.node.is_none() && destination.pod.is_none())
        {
            return Err(Failure::usage("--frame-format is about interfaces on nodes and in pods: leave it out"));
        }
        Ok(MirrorSpec {
            direction: self.frames.direction.into(),
            options,
            destinations,
            vxlan: self.vni.map(|vni| Vxlan { vni: Some(vni) }),
            duration: self.duration,
            suspend: self.suspend,
        })
    }
}

impl FrameFlags {
    /// The mirror options that these flags are about.
    pub fn options(&self) -> Outcome<MirrorOptions> {
        let truncate = Truncate { bytes: self.bytes, headers_only: self.headers_only, exempt_bytes: self.exempt_bytes };
        let limit =
            Limit { bits_per_second: self.rate, packets_per_second: self.pps, bytes_per_flow: self.bytes_per_flow };
        let options = MirrorOptions {
            filter: self.filter(),
            truncate: Some(truncate).filter(|truncate| *truncate != Truncate::default()),
            sample: self.one_in.map(|one_in_flows| Sample { one_in_flows }),
            limit: Some(limit).filter(|limit| *limit != Limit::default()),
            deduplicate: self.dedup.map(|handshakes| Deduplicate { handshakes: handshakes.into() }),
            oversize: self.oversize.into(),
        };
        options.check().map_err(|error| Failure::usage(error.to_string()))?;
        Ok(options)
    }

    fn filter(&self) -> Option<Filter> {
        // What is included must match all flags; what matches any of them is excluded.
        let entry = |protocol: Option<ProtocolFlag>, ports: &[PortRange], cidrs: &[IpNet]| Match {
            protocol: protocol.map(Into::into),
            ports: ports.to_vec(),
            cidrs: cidrs.to_vec(),
        };
        let mut include: Vec<Match> = self.protocol.iter().map(|p| entry(Some(*p), &self.port, &self.cidr)).collect();
        if include.is_empty() {
            include.push(entry(None, &self.port, &self.cidr));
        }
        let mut exclude: Vec<Match> = self.exclude_protocol.iter().map(|p| entry(Some(*p), &[], &[])).collect();
        exclude.push(entry(None, &self.exclude_port, &[]));
        exclude.push(entry(None, &[], &self.exclude_cidr));
        for entries in [&mut include, &mut exclude] {
            entries.retain(|entry| *entry != Match::default());
        }
        let filter = Filter { include, exclude, expression: self.filter.clone() };
        Some(filter).filter(|filter| *filter != Filter::default())
    }
}

fn ports(text: &str) -> Result<PortRange, String> {
    let (first, last) = text.split_once('-').map_or((text, None), |(first, last)| (first, Some(last)));
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port: use 443 or 8000-8100"));
    Ok(PortRange { port: number(first)?, end_port: last.map(number).transpose()? })
}

fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
    network.map_err(|_| format!("{text:?} is not a network such as 10.0.0.0/8 or 2001:db8::/32, nor an address"))
}

fn small_quantity(text: &str) -> Result<u32, String> {
    let quantity: Quantity = text.parse().map_err(|error: podtap_model::QuantityError| error.to_string())?;
    u32::try_from(quantity.get()).map_err(|_| format!("{text} is too large"))
}

fn vni(text: &str) -> Result<Vni, String> {
    let number: u32 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    Vni::try_from(number).map_err(|error| error.to_string())
}
