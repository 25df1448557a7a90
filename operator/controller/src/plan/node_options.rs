//! The mirror options that nodes apply: those of the spec, with what depends on the cluster filled in.

use podtap_model::{Deduplicate, IpNet, MirrorOptions, Reason, bounds::MAX_DEDUPLICATE_CIDRS};

use crate::{failure::Failure, store::snapshot::Snapshot};

/// The options, and why not all of them can be applied if the cluster does not provide enough information.
pub fn node_options(options: &MirrorOptions, snapshot: &Snapshot) -> (MirrorOptions, Option<Failure>) {
    let Some(Deduplicate { pod_cidrs, service_cidrs }) = &options.deduplicate else { return (options.clone(), None) };
    let pods = choose(
        pod_cidrs.as_deref(),
        &snapshot.pod_networks,
        MAX_DEDUPLICATE_CIDRS,
        "podCIDRs",
        "no node has spec.podCIDRs",
    );
    let room = MAX_DEDUPLICATE_CIDRS - pods.as_ref().map_or(0, Vec::len);
    let (given, discovered) = (service_cidrs.as_deref(), &snapshot.service_networks);
    let services = choose(given, discovered, room, "serviceCIDRs", "there is no ServiceCIDR object");
    let failure = pods.as_ref().err().or(services.as_ref().err()).cloned();
    let deduplicate =
        Deduplicate { pod_cidrs: Some(pods.unwrap_or_default()), service_cidrs: Some(services.unwrap_or_default()) };
    (MirrorOptions { deduplicate: Some(deduplicate), ..options.clone() }, failure)
}

/// The networks that the user gives, or else those of the cluster.
fn choose(
    given: Option<&[IpNet]>,
    discovered: &[IpNet],
    room: usize,
    field: &str,
    nothing: &str,
) -> Result<Vec<IpNet>, Failure> {
    let cause = match given {
        Some(given) => return Ok(IpNet::aggregate(&given.iter().map(IpNet::trunc).collect())),
        None if discovered.is_empty() => nothing.to_owned(),
        None if discovered.len() > room => {
            format!("this cluster has {} of them, and there is room for {room}", discovered.len())
        }
        None => return Ok(discovered.to_vec()),
    };
    Err(Failure::new(
        Reason::NetworksUnknown,
        format!(
            "flows between tapped pods are mirrored twice, since the networks of deduplicate.{field} are unknown ({cause}): set deduplicate.{field}"
        ),
    ))
}
