//! Who calls whom as text, as the Otterize CLI prints it (`network-mapper list`, otterize/otterize-cli).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use podtap_flow::map::{Map, Party};

/// Namespace and name of what is in the cluster and is no node.
fn in_cluster(party: &Party) -> Option<(&str, &str)> {
    match party {
        Party::Workload { namespace, workload } => Some((namespace, &workload.name)),
        Party::Service { namespace, name } => Some((namespace, name)),
        Party::Node { .. } | Party::External { .. } | Party::Other => None,
    }
}

/// Writes the edges between workloads, sorted by name and then by namespace.
pub fn write(out: &mut impl Write, map: &Map) -> io::Result<()> {
    let mut calls: BTreeMap<(&str, &str), BTreeSet<(&str, &str)>> = BTreeMap::new();
    for (edge, _) in map.edges() {
        if let (Some((client_namespace, client)), Some((server_namespace, server))) =
            (in_cluster(&edge.client), in_cluster(&edge.server))
        {
            calls.entry((client, client_namespace)).or_default().insert((server, server_namespace));
        }
    }
    if calls.is_empty() {
        eprintln!("No connections found.");
    }
    for ((client, namespace), servers) in calls {
        writeln!(out, "{client} in namespace {namespace} calls:")?;
        for (server, namespace) in servers {
            writeln!(out, "  - {server} in namespace {namespace}")?;
        }
    }
    Ok(())
}
