//! What is up.

use anyhow::Result;

use crate::addresses::{CONTROL_PLANE, node_address, number};
use crate::{cgroup, cluster, fabric, member, relay, state::Lab};

/// Prints one line per part of the lab.
pub fn print(lab: &Lab) -> Result<()> {
    let control_plane = member::running(lab, CONTROL_PLANE);
    let ready = control_plane.as_ref().and_then(|_| cluster::nodes(lab).ok());
    let process = |member: &str| {
        member::running(lab, member).map_or("down".to_owned(), |process| format!("process {}", process.pid))
    };
    println!("{:6} {}", CONTROL_PLANE, process(CONTROL_PLANE));
    println!("{:6} {}", relay::NAME, process(relay::NAME));
    for node in lab.nodes() {
        let number = number(&node)?;
        let cut = control_plane.as_ref().is_some_and(|control_plane| !fabric::is_connected(control_plane, number));
        let state = match (member::running(lab, &node).is_some(), cut, &ready) {
            (false, ..) => "",
            (true, true, _) => "partitioned",
            (true, false, None) => "unknown: the API server does not answer",
            (true, false, Some(ready)) if ready.get(&node) == Some(&true) => "Ready",
            (true, false, Some(_)) => "NotReady",
        };
        println!("{node:6} {:14} {:12} {state}", process(&node), node_address(number));
    }
    let cgroups = match cgroup::Layout::of_this_machine()? {
        cgroup::Layout::V1(_) => "v1",
        cgroup::Layout::V2(_) => "v2",
    };
    println!("state  {} ({}, cgroups {cgroups})", lab.state.display(), lab.id);
    Ok(())
}
