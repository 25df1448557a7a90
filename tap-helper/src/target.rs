//! Which interface of a pod is tapped. Pure.

use std::net::IpAddr;

use podtap_model::{Pod, Reason};

use crate::{
    failure::Failure,
    marks::is_ours,
    netlink::{Link, LinkLayer},
    observe::Observed,
};

/// The interface that a sender taps.
///
/// With a name, the interface of that name. Otherwise the interface with the pod's primary address; while no address is known,
/// the one that the default route uses, IPv4 first, or else the only one with a global address.
///
/// Only Ethernet interfaces can be tapped.
///
/// If addresses are known, some interface must have one of them: otherwise this is not the pod's namespace, or its network is not
/// ready.
pub fn interface<'a>(observed: &'a Observed, pod: &'a Pod, name: Option<&str>) -> Result<&'a Link, Failure> {
    if !pod.addresses.is_empty() && carriers(observed, &pod.addresses).next().is_none() {
        let addresses: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
        return Err(missing(format!(
            "No interface of the pod has its address ({}). Its network may not be ready yet; this is retried when an address appears.",
            addresses.join(", "),
        )));
    }
    let link = match name {
        None => primary(observed, pod)?,
        Some(name) => named(observed, name)?,
    };
    if link.layer == LinkLayer::Loopback {
        return Err(Failure::refused(
            Reason::InvalidSpec,
            format!("{} is the loopback interface, which cannot be tapped. Name another interface.", link.name),
        ));
    }
    if link.layer != LinkLayer::Ethernet {
        return Err(Failure::refused(
            Reason::InvalidSpec,
            format!(
                "{} is not an Ethernet interface: its frames have no Ethernet header, and cannot be mirrored. Name another interface.",
                link.name,
            ),
        ));
    }
    if is_ours(link) {
        return Err(Failure::refused(
            Reason::InvalidSpec,
            format!("{} is a device of PodTap. Name an interface of the pod itself.", link.name),
        ));
    }
    Ok(link)
}

fn named<'a>(observed: &'a Observed, name: &str) -> Result<&'a Link, Failure> {
    observed.links.iter().find(|link| link.name == name).ok_or_else(|| {
        let existing = usable(observed).map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ");
        missing(format!("The pod has no interface {name}, only: {existing}. Correct the tap's interface."))
    })
}

fn primary<'a>(observed: &'a Observed, pod: &'a Pod) -> Result<&'a Link, Failure> {
    if let Some(link) = carriers(observed, &pod.addresses).next() {
        return Ok(link);
    }
    let mut routes = observed.default_routes.clone();
    routes.sort_unstable();
    if let Some(link) = routes.iter().find_map(|route| observed.link(route.interface)) {
        return Ok(link);
    }
    let mut candidates = usable(observed)
        .filter(|link| observed.addresses.iter().any(|address| address.global && address.interface == link.index));
    match (candidates.next(), candidates.next()) {
        (Some(link), None) => Ok(link),
        (None, _) => {
            Err(missing("No interface of the pod has an address yet; this is retried when one appears.".to_owned()))
        }
        (Some(first), Some(second)) => Err(missing(format!(
            "The pod has no default route and several interfaces ({}, {}, ..). Name the one to tap.",
            first.name, second.name,
        ))),
    }
}

/// The devices with the pod's addresses, in the order of the addresses. A pod may add its address to further devices: of those that can
/// be tapped, the oldest counts.
fn carriers<'a>(observed: &'a Observed, addresses: &'a [IpAddr]) -> impl Iterator<Item = &'a Link> {
    addresses.iter().filter_map(|expected| {
        let here = observed.addresses.iter().filter(|address| address.address == *expected);
        let links = here.filter_map(|address| observed.link(address.interface));
        let links = links.filter(|link| link.layer != LinkLayer::Loopback && !is_ours(link));
        links.min_by_key(|link| (link.layer != LinkLayer::Ethernet, link.index))
    })
}

/// The addresses of a pod that its interface of this name has.
pub fn addresses(observed: &Observed, pod: &Pod, interface: &str) -> Vec<IpAddr> {
    let Some(link) = observed.links.iter().find(|link| link.name == interface) else { return Vec::new() };
    let is_here = |expected: &&IpAddr| {
        observed.addresses.iter().any(|address| address.address == **expected && address.interface == link.index)
    };
    pod.addresses.iter().filter(is_here).copied().collect()
}

fn usable(observed: &Observed) -> impl Iterator<Item = &Link> {
    observed.links.iter().filter(|link| link.layer == LinkLayer::Ethernet && !is_ours(link))
}

fn missing(message: String) -> Failure {
    Failure::refused(Reason::InterfaceNotFound, message)
}
