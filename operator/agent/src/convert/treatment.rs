//! What becomes of the frames of a tap, from the `NodeTap` to the contract.

use std::{collections::BTreeMap, net::IpAddr};

use podtap_api::{
    NodeTapDeduplicate, NodeTapFilter, NodeTapInstruction, NodeTapMatch, NodeTapPorts, NodeTapTreatment, Protocol,
};
use serde_json::Value;
use tap_wire::{Deduplicate, Filter, Instruction, Limit, Match, Network, Oversize, PortRange, Sender, Truncate};

use super::{Unusable, address, port, strictly, text};

/// The treatments of a `NodeTap` by the UID of their tap, read each for itself.
pub struct Treatments(BTreeMap<String, Result<Treatment, String>>);

impl Treatments {
    pub fn read(entries: &[Value]) -> Self {
        let read = |entry: &Value| strictly(entry).and_then(treatment).map_err(|why| why.to_string());
        Self(entries.iter().map(|entry| (text(entry, "/tapUid"), read(entry))).collect())
    }

    /// The treatment of a tap. None is an error: without it, more would be copied than somebody asked for.
    pub fn of(&self, tap: &str) -> Result<&Treatment, Unusable> {
        match self.0.get(tap) {
            Some(Ok(treatment)) => Ok(treatment),
            Some(Err(why)) => Err(Unusable::Treatment(why.clone())),
            None => Err(Unusable::NoTreatment),
        }
    }
}

/// The part of a [`Sender`] that all senders of a tap have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treatment {
    filter: Filter,
    truncate: Option<Truncate>,
    one_in_flows: u32,
    limit: Limit,
    oversize: Oversize,
    deduplicate: Option<Deduplicate>,
}

impl Treatment {
    /// Adds it to a sender.
    pub fn apply(&self, sender: Sender) -> Sender {
        let Self { filter, truncate, one_in_flows, limit, oversize, deduplicate } = self.clone();
        Sender { filter, truncate, one_in_flows, limit, oversize, deduplicate, ..sender }
    }
}

fn treatment(entry: NodeTapTreatment) -> Result<Treatment, Unusable> {
    let NodeTapTreatment {
        tap_uid: _,
        filter,
        truncate_bytes,
        headers_only,
        one_in_flows,
        bits_per_second,
        packets_per_second,
        oversize,
        deduplicate,
    } = entry;
    Ok(Treatment {
        filter: filter.map_or_else(|| Ok(Filter::default()), self::filter)?,
        truncate: match (truncate_bytes, headers_only) {
            (None, false) => None,
            (None, true) => Some(Truncate::Headers),
            (Some(bytes), false) => Some(Truncate::Bytes(number("truncateBytes", bytes)?)),
            (Some(_), true) => return Err(Unusable::TwoTruncations),
        },
        one_in_flows: number("oneInFlows", one_in_flows.unwrap_or(1))?,
        limit: Limit {
            bits_per_second: number("bitsPerSecond", bits_per_second.unwrap_or_default())?,
            packets_per_second: number("packetsPerSecond", packets_per_second.unwrap_or_default())?,
        },
        oversize: match oversize {
            podtap_api::Oversize::Fragment => Oversize::Fragment,
            podtap_api::Oversize::Truncate => Oversize::Truncate,
        },
        deduplicate: deduplicate.as_ref().map(self::deduplicate).transpose()?,
    })
}

fn filter(filter: NodeTapFilter) -> Result<Filter, Unusable> {
    let NodeTapFilter { include, exclude, expression } = filter;
    let matches = |list: Vec<NodeTapMatch>| list.iter().map(match_).collect::<Result<_, _>>();
    let instruction = |NodeTapInstruction { code, jt, jf, k }: &NodeTapInstruction| {
        Ok::<_, Unusable>(Instruction {
            code: number("code", *code)?,
            jt: number("jt", *jt)?,
            jf: number("jf", *jf)?,
            k: number("k", *k)?,
        })
    };
    Ok(Filter {
        include: matches(include)?,
        exclude: matches(exclude)?,
        expression: expression.iter().map(instruction).collect::<Result<_, _>>()?,
    })
}

fn match_(entry: &NodeTapMatch) -> Result<Match, Unusable> {
    let NodeTapMatch { protocol, ports, networks } = entry;
    let range = |NodeTapPorts { first, last }: &NodeTapPorts| {
        Ok::<_, Unusable>(PortRange { first: port(*first)?, last: port(*last)? })
    };
    Ok(Match {
        protocol: protocol.map(|protocol| match protocol {
            Protocol::Tcp => tap_wire::Protocol::Tcp,
            Protocol::Udp => tap_wire::Protocol::Udp,
            Protocol::Sctp => tap_wire::Protocol::Sctp,
            Protocol::Icmp => tap_wire::Protocol::Icmp,
            Protocol::Icmpv6 => tap_wire::Protocol::Icmpv6,
        }),
        ports: ports.iter().map(range).collect::<Result<_, _>>()?,
        networks: self::networks(networks)?,
    })
}

fn deduplicate(entry: &NodeTapDeduplicate) -> Result<Deduplicate, Unusable> {
    let NodeTapDeduplicate { pod_networks, service_networks } = entry;
    Ok(Deduplicate { pod_networks: networks(pod_networks)?, service_networks: networks(service_networks)? })
}

fn networks(texts: &[String]) -> Result<Vec<Network>, Unusable> {
    texts.iter().map(|text| network(text)).collect()
}

fn network(text: &str) -> Result<Network, Unusable> {
    let (bits, prefix) = text.split_once('/').ok_or_else(|| Unusable::Network(text.to_owned()))?;
    let address: IpAddr = address(bits)?;
    let prefix: u8 = prefix.parse().map_err(|_| Unusable::Network(text.to_owned()))?;
    Ok(Network { address, prefix })
}

/// A number of the API, whose types have a sign, as one of the contract.
pub fn number<A: Copy + Into<i64>, W: TryFrom<i64>>(field: &'static str, number: A) -> Result<W, Unusable> {
    W::try_from(number.into()).map_err(|_| Unusable::Number(field, number.into()))
}

#[cfg(test)]
mod tests;
