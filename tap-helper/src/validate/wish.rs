//! What of the treatment that is wanted for frames contradicts itself, or a limit.

use tap_wire::{
    Deduplicate, Filter, Limit, MAX_MATCHES, MAX_NETWORKS, MAX_RATE, MAX_RULES, MIN_TRUNCATED, Match, Network,
    PortRange, Protocol, Sender, Truncate, check_program,
};

/// Smallest MTU that IPv4 allows to be relied on (RFC 791).
const MIN_MTU: u32 = 576;
/// Largest length of an IP packet.
const MAX_MTU: u32 = 65_535;

/// Why what a sender asks for cannot be done, as a sentence.
pub fn check(sender: &Sender) -> Result<(), String> {
    // Named one by one, so that a part which is added cannot be forgotten here.
    let Sender {
        tap: _,
        pod: _,
        interface: _,
        direction: _,
        destinations: _,
        filter,
        truncate,
        one_in_flows: _,
        limit: Limit { bits_per_second, packets_per_second },
        oversize: _,
        deduplicate,
        underlay_mtu,
    } = sender;
    self::filter(filter)?;
    if let Some(Truncate::Bytes(bytes)) = truncate
        && *bytes < MIN_TRUNCATED
    {
        return Err(format!("A copy of {bytes} bytes is no frame: it must have at least {MIN_TRUNCATED}."));
    }
    if let Some(Deduplicate { pod_networks, service_networks }) = deduplicate {
        let count = pod_networks.len() + service_networks.len();
        at_most("networks whose flows are copied once", count, MAX_NETWORKS)?;
        pod_networks.iter().chain(service_networks).try_for_each(network)?;
    }
    if let Some(rate) = [bits_per_second, packets_per_second].into_iter().find(|rate| **rate > MAX_RATE) {
        return Err(format!("A limit of {rate} per second is more than the {MAX_RATE} that can be kept."));
    }
    if let Some(mtu) = underlay_mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
        return Err(format!("An MTU of {mtu} is not one of a path: it must be between {MIN_MTU} and {MAX_MTU}."));
    }
    Ok(())
}

fn filter(filter: &Filter) -> Result<(), String> {
    let Filter { include, exclude, expression } = filter;
    for matches in [include, exclude] {
        at_most("entries of a filter", matches.len(), MAX_MATCHES)?;
        matches.iter().try_for_each(match_)?;
    }
    at_most("rules of a filter, one for each combination of ports and networks,", filter.rules(), MAX_RULES)?;
    // Without an expression, nothing runs.
    if expression.is_empty() {
        return Ok(());
    }
    check_program(expression).map_err(|why| format!("The filter's expression is no program that can run: {why}."))
}

fn match_(part: &Match) -> Result<(), String> {
    let Match { protocol, ports, networks } = part;
    at_most("port ranges in one entry of a filter", ports.len(), MAX_MATCHES)?;
    at_most("networks in one entry of a filter", networks.len(), MAX_MATCHES)?;
    if let Some(protocol) = protocol.filter(|protocol| !protocol.has_ports() && !ports.is_empty()) {
        return Err(format!("{protocol:?} has no ports: an entry of a filter cannot have both."));
    }
    if let Some(PortRange { first, last }) = ports.iter().find(|range| range.first == 0 || range.last < range.first) {
        return Err(format!("Ports {first} to {last} are no range."));
    }
    let of_family = |wanted: Protocol, ipv4: bool| {
        *protocol == Some(wanted) && !networks.is_empty() && networks.iter().all(|n| n.address.is_ipv4() != ipv4)
    };
    if of_family(Protocol::Icmp, true) || of_family(Protocol::Icmpv6, false) {
        return Err("ICMP is of IPv4, and ICMPv6 of IPv6: networks of the other family match nothing.".to_owned());
    }
    networks.iter().try_for_each(network)
}

fn network(network: &Network) -> Result<(), String> {
    let Network { address, prefix } = network;
    if u32::from(*prefix) > if address.is_ipv4() { 32 } else { 128 } {
        return Err(format!("{address}/{prefix} is no network."));
    }
    Ok(())
}

fn at_most(what: &str, count: usize, limit: usize) -> Result<(), String> {
    if count > limit {
        return Err(format!("There are {count} {what}, and there may be {limit}."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tap_wire::{Instruction, Pod};

    use super::*;

    fn sender(change: impl FnOnce(&mut Sender)) -> Result<(), String> {
        let pod = Pod { uid: "p".to_owned(), cgroup_uid: None, addresses: vec![] };
        let mut sender = Sender::of_everything("t".to_owned(), pod, vec![]);
        change(&mut sender);
        check(&sender)
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Sender), words: &str) {
        let why = sender(change).expect_err("it makes no sense");
        assert!(why.contains(words), "wanted “{words}” in “{why}”");
    }

    fn net(address: [u8; 4], prefix: u8) -> Network {
        Network { address: address.into(), prefix }
    }

    fn tcp() -> Match {
        Match {
            protocol: Some(Protocol::Tcp),
            ports: vec![PortRange { first: 1, last: 65_535 }],
            networks: vec![net([10, 0, 0, 0], 8)],
        }
    }

    #[test]
    fn what_makes_sense() {
        assert_eq!(sender(|_| ()), Ok(()));
        let all = |sender: &mut Sender| {
            sender.filter.include = vec![tcp(); MAX_MATCHES];
            sender.limit = Limit { bits_per_second: MAX_RATE, packets_per_second: 0 };
            sender.filter.exclude = vec![Match::default()];
            sender.filter.expression = vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }];
            sender.truncate = Some(Truncate::Bytes(14));
            sender.deduplicate = Some(Deduplicate { pod_networks: vec![net([0; 4], 0)], service_networks: vec![] });
            sender.underlay_mtu = Some(1400);
        };
        assert_eq!(sender(all), Ok(()));
    }

    #[test]
    fn what_is_not_asked_for_is_not_written() {
        let pod = Pod { uid: "p".to_owned(), cgroup_uid: None, addresses: vec![] };
        let mut sender = Sender::of_everything("t".to_owned(), pod, vec![]);
        let plain = serde_json::to_value(&sender).expect("it can be written");
        assert!(plain.get("filter").is_none() && plain.get("limit").is_none() && plain.get("truncate").is_none());
        sender.filter.expression = vec![Instruction { code: 6, jt: 1, jf: 2, k: 3 }];
        sender.filter.include = vec![tcp()];
        sender.one_in_flows = 7;
        let written = serde_json::to_value(&sender).expect("it can be written");
        assert_eq!(written["filter"]["expression"], serde_json::json!([[6, 1, 2, 3]]));
        assert_eq!(written["filter"]["include"][0]["protocol"], "TCP");
        assert_eq!(serde_json::from_value::<Sender>(written).expect("it can be read"), sender);
        let read: Sender = serde_json::from_value(plain).expect("it can be read");
        assert!(check(&read).is_ok() && read.one_in_flows <= 1 && read.filter.is_empty());
    }

    #[test]
    fn what_does_not() {
        refused(|s| s.filter.include = vec![tcp(); 17], "17 entries of a filter, and there may be 16");
        refused(|s| s.filter.exclude = vec![tcp(); 17], "17 entries of a filter");
        let with = |change: fn(&mut Match)| {
            let mut entry = tcp();
            change(&mut entry);
            move |s: &mut Sender| s.filter.include = vec![entry]
        };
        refused(with(|m| m.protocol = Some(Protocol::Icmp)), "Icmp has no ports");
        refused(with(|m| m.ports[0].first = 0), "Ports 0 to 65535 are no range");
        refused(with(|m| m.ports[0] = PortRange { first: 9, last: 8 }), "Ports 9 to 8 are no range");
        refused(with(|m| m.ports = vec![m.ports[0]; 17]), "17 port ranges");
        refused(with(|m| m.networks = vec![m.networks[0]; 17]), "17 networks");
        refused(with(|m| m.networks[0].prefix = 33), "10.0.0.0/33 is no network");
        let ping6 = Match { protocol: Some(Protocol::Icmpv6), ports: vec![], networks: vec![net([10, 0, 0, 0], 8)] };
        refused(|s| s.filter.include = vec![ping6], "ICMPv6 of IPv6");
        refused(|s| s.filter.expression = vec![Instruction { code: 0, jt: 0, jf: 0, k: 0 }], "leads beyond the end");
        refused(|s| s.truncate = Some(Truncate::Bytes(13)), "13 bytes is no frame");
        let wide = with(|m| (m.ports, m.networks) = (vec![m.ports[0]; 13], vec![m.networks[0]; 5]));
        refused(wide, "65 rules of a filter");
        refused(|s| s.limit.packets_per_second = MAX_RATE + 1, "is more than the 100000000000");
        let many = Deduplicate { pod_networks: vec![], service_networks: vec![net([10, 0, 0, 0], 8); 65] };
        refused(|s| s.deduplicate = Some(many), "65 networks");
        refused(|s| s.underlay_mtu = Some(575), "An MTU of 575");
    }
}
