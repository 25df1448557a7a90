//! Part of stages 2 and 4: what becomes of the frames of a tap. Pure.

use std::sync::Arc;

use podtap_api::{
    Deduplicate, Filter, FilterMatch, FilterPort, Limit, NodeTapDeduplicate, NodeTapFilter, NodeTapInstruction,
    NodeTapMatch, NodeTapPorts, NodeTapTreatment, PodTapSpec, Protocol, Sample, Truncate,
};
use tap_wire::{Instruction, MAX_INSTRUCTIONS, MAX_MATCHES, MAX_NETWORKS, MAX_RULES, ProgramError, check_program};

use crate::{expression::compiled::{self, Compiled, Expressions}, failure::Failure, network::{Network, ParseNetworkError}, reason, store::snapshot::Snapshot};

/// Why the frames of a tap cannot be treated as its spec says.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    #[error("give at most {MAX_MATCHES} {what}, not {count}")]
    Count { what: &'static str, count: usize },
    #[error("set at least one of protocol, ports and cidrs in each entry of filter.include and filter.exclude")]
    EmptyMatch,
    #[error("ICMP and ICMPv6 have no ports: leave ports out, or set protocol to TCP, UDP or SCTP")]
    NoPorts,
    #[error(
        "{0} to {1} are no ports: port must be between 1 and 65535, and endPort between port and 65535, or left out"
    )]
    Ports(i32, i32),
    #[error("{field}: {source}")]
    Network { field: &'static str, source: ParseNetworkError },
    #[error("filter.expression must be a pcap-filter expression of up to {} characters in ASCII", expressions::LONGEST)]
    Text,
    #[error("filter.expression {0:?} cannot be used; libpcap says: {1}")]
    Expression(String, String),
    #[error(
        "filter.expression becomes {0} instructions, and {MAX_INSTRUCTIONS} are allowed: use filter.include and filter.exclude for lists of hosts and ports"
    )]
    Long(usize),
    #[error(
        "filter.expression {0:?} asks for what only a capture on a device knows, and not the frame: leave inbound, outbound, ifindex and offsets below zero out; spec.direction chooses between frames that enter and leave the pod"
    )]
    Extension(String),
    #[error(
        "filter.expression {0:?} becomes a loop, and no kernel runs one: write proto instead of protochain, or set protocol in filter.include, which looks behind up to eight IPv6 extension headers"
    )]
    Loop(String),
    #[error("filter.expression {0:?} cannot run on nodes: {1}; write it in another way")]
    Program(String, ProgramError),
    #[error(
        "filter.expression is not compiled yet: goes on by itself, and the controller's log says what it waits for"
    )]
    Pending,
    #[error("set exactly one of truncate.bytes and truncate.headersOnly: true")]
    Truncate,
    #[error("{field} must be between {first} and {last}, not {number}")]
    Number { field: &'static str, number: i64, first: i64, last: i64 },
    #[error(
        "the filter has {0} combinations of ports and cidrs, and {MAX_RULES} are allowed: join neighbouring ports and networks, or write it as filter.expression"
    )]
    Rules(usize),
    #[error("give at most {MAX_NETWORKS} networks in deduplicate.podCIDRs and serviceCIDRs together, not {0}")]
    Networks(usize),
}

impl Invalid {
    /// For the user.
    pub fn failure(&self) -> Failure {
        let reason = if matches!(self, Self::Pending) { reason::WAITING } else { reason::INVALID_SPEC };
        Failure::new(reason, self.to_string())
    }
}

/// What becomes of the frames of a tap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MirrorOptions {
    /// Without the tap, and without what depends on the cluster.
    fixed: NodeTapTreatment,
    deduplicate: Option<Peers>,
    /// Why it has the expression that the nodes had before, and not that of the spec.
    flaw: Option<Failure>,
}

/// Whose peers count as tapped; none where the cluster is to be asked.
#[derive(Clone, Debug, Default, PartialEq)]
struct Peers {
    pods: Option<Vec<Network>>,
    services: Option<Vec<Network>>,
}

impl MirrorOptions {
    /// Checks the spec. A mistake in the expression of a tap that stands already changes nothing: it goes on with the expression
    /// before, which `standing` looks up.
    pub fn new(
        spec: &PodTapSpec,
        expressions: &Expressions,
        standing: impl FnOnce() -> Option<Vec<NodeTapInstruction>>,
    ) -> Result<Self, Invalid> {
        let text = spec.filter.as_ref().and_then(|filter| filter.expression.as_deref());
        let (program, flaw) = match text.map_or_else(|| Ok(Vec::new()), |text| program(text, expressions)) {
            Ok(program) => (program, None),
            Err(invalid) => match standing() {
                Some(program) => (program, Some(invalid.failure())),
                None => return Err(invalid),
            },
        };
        Ok(Self { flaw, ..Self::with_program(spec, program)? })
    }

    /// Why it is not what the spec says.
    pub fn flaw(&self) -> Option<&Failure> {
        self.flaw.as_ref()
    }

    fn with_program(spec: &PodTapSpec, program: Vec<NodeTapInstruction>) -> Result<Self, Invalid> {
        let PodTapSpec { filter, truncate, sample, limit, deduplicate, oversize, .. } = spec;
        let limit = limit.unwrap_or_default();
        let Limit { bits_per_second, packets_per_second } = limit;
        let fixed = NodeTapTreatment {
            tap_uid: String::new(),
            filter: filter.as_ref().map(|filter| self::filter(filter, program)).transpose()?,
            truncate_bytes: truncate.as_ref().map(bytes).transpose()?.flatten(),
            headers_only: truncate.is_some_and(|truncate| truncate.headers_only == Some(true)),
            one_in_flows: sample
                .map(|Sample { one_in_flows: number }| within("sample.oneInFlows", number, 1, 1_000_000))
                .transpose()?
                .filter(|number| *number > 1),
            bits_per_second: rate("limit.bitsPerSecond", bits_per_second, 100_000_000_000)?,
            packets_per_second: rate("limit.packetsPerSecond", packets_per_second, 1_000_000_000)?,
            oversize: *oversize,
            deduplicate: None,
        };
        Ok(Self { fixed, deduplicate: deduplicate.as_ref().map(peers).transpose()?, flaw: None })
    }

    /// What nodes are told, if anything, and what of it cannot be done because the cluster does not say enough.
    pub fn for_nodes(&self, tap: &str, snapshot: &Snapshot) -> (Option<NodeTapTreatment>, Option<Failure>) {
        let Some(Peers { pods, services }) = &self.deduplicate else {
            let is_wanted = self.fixed != NodeTapTreatment::default();
            return (is_wanted.then(|| NodeTapTreatment { tap_uid: tap.to_owned(), ..self.fixed.clone() }), None);
        };
        let pods =
            choose(pods.as_deref(), &snapshot.pod_networks, MAX_NETWORKS, "podCIDRs", "no node has spec.podCIDRs");
        let room = MAX_NETWORKS - pods.as_ref().map_or(0, |pods| pods.len());
        let (services, discovered) = (services.as_deref(), &snapshot.service_networks);
        let services = choose(services, discovered, room, "serviceCIDRs", "there is no ServiceCIDR object");
        let failure = pods.as_ref().err().or(services.as_ref().err()).cloned();
        let texts = |networks: Result<&[Network], Failure>| -> Vec<String> {
            networks.unwrap_or_default().iter().map(ToString::to_string).collect()
        };
        let deduplicate = NodeTapDeduplicate { pod_networks: texts(pods), service_networks: texts(services) };
        let options =
            NodeTapTreatment { tap_uid: tap.to_owned(), deduplicate: Some(deduplicate), ..self.fixed.clone() };
        (Some(options), failure)
    }
}

/// Those that the user gave, or else those of the cluster.
fn choose<'a>(
    given: Option<&'a [Network]>,
    discovered: &'a [Network],
    room: usize,
    field: &str,
    nothing: &str,
) -> Result<&'a [Network], Failure> {
    let why = match given {
        Some(given) => return Ok(given),
        None if discovered.is_empty() => nothing.to_owned(),
        None if discovered.len() > room => {
            format!("this cluster has {} of them, and there is room for {room}", discovered.len())
        }
        None => return Ok(discovered),
    };
    Err(Failure::new(
        reason::NETWORKS_UNKNOWN,
        format!(
            "flows between tapped pods are copied twice, since it is not known which networks deduplicate.{field} is about ({why}): set deduplicate.{field}"
        ),
    ))
}

/// The expression with which nodes copy for a tap now; none if none does.
pub fn standing(snapshot: &Snapshot, tap: &str) -> Option<Vec<NodeTapInstruction>> {
    let mut specs = snapshot.node_taps.values().filter_map(|node_tap| node_tap.spec.as_ref());
    let spec = specs.find(|spec| spec.senders.iter().any(|sender| sender.tap.uid == tap))?;
    let options = spec.treatments.iter().find(|options| options.tap_uid == tap);
    Some(options.and_then(|options| options.filter.as_ref()).map(|f| f.expression.clone()).unwrap_or_default())
}

fn filter(filter: &Filter, expression: Vec<NodeTapInstruction>) -> Result<NodeTapFilter, Invalid> {
    let Filter { include, exclude, expression: _ } = filter;
    let matches = |list: &[FilterMatch], what| {
        at_most(what, list.len())?;
        list.iter().map(match_).collect::<Result<Vec<_>, _>>()
    };
    let include = matches(include, "entries in filter.include")?;
    let exclude = matches(exclude, "entries in filter.exclude")?;
    let rules = |entry: &NodeTapMatch| entry.ports.len().max(1) * entry.networks.len().max(1);
    let rules = include.iter().chain(&exclude).map(rules).sum();
    if rules > MAX_RULES {
        return Err(Invalid::Rules(rules));
    }
    Ok(NodeTapFilter { include, exclude, expression })
}

fn program(text: &str, expressions: &Expressions) -> Result<Vec<NodeTapInstruction>, Invalid> {
    if !expressions::is_text(text) {
        return Err(Invalid::Text);
    }
    let compiled: &Compiled = expressions.get(text).map(Arc::as_ref).ok_or(Invalid::Pending)?;
    let program = compiled.as_ref().map_err(|words| Invalid::Expression(text.to_owned(), words.clone()))?;
    // As the nodes do: one that they refused would end the tap.
    check_program(program).map_err(|error| match error {
        ProgramError::Length(count) if count > MAX_INSTRUCTIONS => Invalid::Long(count),
        ProgramError::Outside(_) => Invalid::Extension(text.to_owned()),
        ProgramError::Backwards(_) => Invalid::Loop(text.to_owned()),
        error => Invalid::Program(text.to_owned(), error),
    })?;
    let instruction = |&Instruction { code, jt, jf, k }: &Instruction| NodeTapInstruction {
        code: code.into(),
        jt: jt.into(),
        jf: jf.into(),
        k: k.into(),
    };
    Ok(program.iter().map(instruction).collect())
}

fn match_(entry: &FilterMatch) -> Result<NodeTapMatch, Invalid> {
    let FilterMatch { protocol, ports, cidrs } = entry;
    if *entry == FilterMatch::default() {
        return Err(Invalid::EmptyMatch);
    }
    if !ports.is_empty() && matches!(protocol, Some(Protocol::Icmp | Protocol::Icmpv6)) {
        return Err(Invalid::NoPorts);
    }
    at_most("ports in an entry of a filter", ports.len())?;
    at_most("cidrs in an entry of a filter", cidrs.len())?;
    let range = |&FilterPort { port, end_port }: &FilterPort| {
        let last = end_port.unwrap_or(port);
        let is_range = 1 <= port && port <= last && last <= 65_535;
        if is_range { Ok(NodeTapPorts { first: port, last }) } else { Err(Invalid::Ports(port, last)) }
    };
    Ok(NodeTapMatch {
        protocol: *protocol,
        ports: ports.iter().map(range).collect::<Result<_, _>>()?,
        networks: networks("cidrs", cidrs)?.iter().map(ToString::to_string).collect(),
    })
}

fn peers(deduplicate: &Deduplicate) -> Result<Peers, Invalid> {
    let Deduplicate { pod_cidrs, service_cidrs } = deduplicate;
    let read = |field, list: &Option<Vec<String>>| {
        list.as_ref().map(|list| networks(field, list).map(Network::aggregate)).transpose()
    };
    let peers = Peers {
        pods: read("deduplicate.podCIDRs", pod_cidrs)?,
        services: read("deduplicate.serviceCIDRs", service_cidrs)?,
    };
    let count = [&peers.pods, &peers.services].into_iter().flatten().map(Vec::len).sum();
    if count > MAX_NETWORKS { Err(Invalid::Networks(count)) } else { Ok(peers) }
}

fn networks(field: &'static str, texts: &[String]) -> Result<Vec<Network>, Invalid> {
    texts.iter().map(|text| text.parse().map_err(|source| Invalid::Network { field, source })).collect()
}

fn bytes(truncate: &Truncate) -> Result<Option<i32>, Invalid> {
    match truncate {
        Truncate { bytes: Some(bytes), headers_only: None | Some(false) } => {
            within("truncate.bytes", *bytes, 14, 65_535).map(Some)
        }
        Truncate { bytes: None, headers_only: Some(true) } => Ok(None),
        _ => Err(Invalid::Truncate),
    }
}

/// A rate that means something: 0 is none.
fn rate(field: &'static str, number: Option<i64>, last: i64) -> Result<Option<i64>, Invalid> {
    Ok(number.map(|number| within(field, number, 0, last)).transpose()?.filter(|number| *number > 0))
}

fn within<N: Copy + Into<i64>>(field: &'static str, number: N, first: i64, last: i64) -> Result<N, Invalid> {
    if (first..=last).contains(&number.into()) {
        Ok(number)
    } else {
        Err(Invalid::Number { field, number: number.into(), first, last })
    }
}

fn at_most(what: &'static str, count: usize) -> Result<(), Invalid> {
    if count > MAX_MATCHES { Err(Invalid::Count { what, count }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
