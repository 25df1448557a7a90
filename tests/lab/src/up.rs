//! Bringing the lab up: from nothing, from what a crash has left, or from one that is up already.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::addresses::{API_SERVICE, CONTROL_PLANE, MOST_NODES, name, number};
use crate::progress::{say, step};
use crate::{
    binaries, cluster, fabric, machine, member, namespaces, node, pki, prerequisites, process::Process, progress,
    relay, state::Lab, test_images,
};

/// How long a part may take on a cold and busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Builds the programs and images that a lab needs. Helm is separate, because only users of the lab need it.
pub fn prepare(lab: &Lab) -> Result<()> {
    prerequisites::ensure()?;
    binaries::ensure_kubernetes(lab)?;
    test_images::make(lab)
}

/// Brings up the control plane and at least `count` nodes, and then builds Helm, if asked to.
pub fn up(lab: &Lab, count: u8, with_helm: bool) -> Result<()> {
    ensure!((1..=MOST_NODES).contains(&count), "a lab has 1 to {MOST_NODES} nodes");
    let began = Instant::now();
    let _lock = lab.lock()?;
    member::end_strays(lab)?;
    prepare(lab)?;
    machine::enter(lab)?;
    pki::ensure(lab)?;
    if !lab.path("nodes").exists() {
        // The logs of a lab that was taken down are kept until the next one.
        let _ = fs::remove_dir_all(lab.path("log"));
    }
    let nodes: BTreeSet<String> = lab.nodes().into_iter().chain((1..=count).map(name)).collect();
    boot(lab, &nodes).inspect_err(|_| {
        say("the lab is left as it is, for inspection; lab down removes it");
    })?;
    let seconds = began.elapsed().as_secs_f32();
    say(&format!("nodes that are ready: {}, after {seconds:.1} s", nodes.len()));
    println!("export KUBECONFIG={}", lab.path("kubeconfig").display());
    if with_helm { binaries::ensure_helm(lab) } else { Ok(()) }
}

fn boot(lab: &Lab, nodes: &BTreeSet<String>) -> Result<()> {
    let up = member::running(lab, CONTROL_PLANE);
    let (api_runs, known) = (up.is_some(), lab.nodes());
    let control_plane = up.map_or_else(|| start_control_plane(lab, nodes), Ok)?;
    if member::running(lab, relay::NAME).is_none() {
        relay::start(lab)?;
    }
    // Also if it runs: an earlier start may have been interrupted right after starting it.
    relay::publish(lab)?;
    // A node without a veth pair is left from an interrupted start, and has to be started again.
    let is_whole = |node: &&String| member::running(lab, node).is_some() && fabric::has_cable(&control_plane, node);
    let (whole, stopped): (Vec<_>, Vec<_>) = nodes.iter().partition(is_whole);
    for node in &whole {
        fabric::set_cable(&control_plane, number(node)?, true)?;
    }
    let start_stopped = || {
        stopped.iter().try_for_each(|node| {
            node::kill(lab, node)?;
            node::start(lab, &control_plane, node)
        })
    };
    // Everything starts at the same time, except that a running API server learns of nodes before they start.
    if !api_runs {
        start_stopped()?;
    }
    step("waiting for the API server", || {
        wait_until(lab, "the API server", [CONTROL_PLANE], || cluster::is_ready(lab, &lab.path("kubeconfig")))
    })?;
    for node in whole {
        cluster::declare(lab, node)?;
    }
    for node in &stopped {
        announce(lab, node, known.contains(node))?;
    }
    if api_runs {
        start_stopped()?;
    }
    wait_for_nodes(lab, nodes)
}

/// The fabric was removed with the control plane, and the nodes' ends of their veth pairs with it.
fn start_control_plane(lab: &Lab, nodes: &BTreeSet<String>) -> Result<Process> {
    for node in nodes {
        node::kill(lab, node)?;
    }
    member::kill(lab, relay::NAME)?;
    crate::control_plane::start(lab)
}

/// Starts one node, which may be a new one.
pub fn start_node(lab: &Lab, node: &str) -> Result<()> {
    let _lock = lab.lock()?;
    let control_plane = member::expect(lab, CONTROL_PLANE)?;
    if member::running(lab, node).is_some() {
        say(&format!("{node} is up already"));
    } else {
        announce(lab, node, true)?;
        node::start(lab, &control_plane, node)?;
    }
    wait_for_nodes(lab, &[node.to_owned()].into())
}

/// Tells Kubernetes about a node that is started. The status of one that has run before is no longer true.
fn announce(lab: &Lab, node: &str, has_run: bool) -> Result<()> {
    if cluster::declare(lab, node)? && has_run { cluster::distrust(lab, node) } else { Ok(()) }
}

/// Waits until pods can run on these nodes and reach the API server from there.
fn wait_for_nodes(lab: &Lab, nodes: &BTreeSet<String>) -> Result<()> {
    let names: Vec<_> = nodes.iter().map(String::as_str).collect();
    let members = || names.iter().copied().chain([CONTROL_PLANE]);
    let api_service = SocketAddr::new(API_SERVICE.parse()?, 443);
    step(format!("waiting for {}", names.join(", ")), || {
        wait_until(lab, "readiness", members(), || {
            let ready = cluster::nodes(lab).unwrap_or_default();
            names.iter().all(|node| ready.get(*node) == Some(&true)) && cluster::has_service_account(lab)
        })?;
        wait_until(lab, "the address of the API service", members(), || {
            // A node can be ready before its kube-proxy has set up the first service.
            names.iter().all(|node| reaches(lab, node, api_service))
        })
    })
}

/// Whether a node can connect to this address.
pub fn reaches(lab: &Lab, node: &str, address: SocketAddr) -> bool {
    let connect = || Ok(TcpStream::connect_timeout(&address, Duration::from_millis(100))?);
    member::expect(lab, node).and_then(|process| namespaces::within_network(&process, connect)).is_ok()
}

/// Waits, unless a member has failed.
pub fn wait_until<'a>(
    lab: &Lab,
    what: &str,
    members: impl IntoIterator<Item = &'a str>,
    mut is_so: impl FnMut() -> bool,
) -> Result<()> {
    let members: Vec<_> = members.into_iter().collect();
    let mut failure = None;
    let came = progress::wait_until(PATIENCE, || {
        failure = members.iter().find_map(|member| member::check(lab, member).err());
        failure.is_some() || is_so()
    });
    match failure {
        Some(failure) => Err(failure),
        None if came => Ok(()),
        None => bail!("timed out waiting for {what} after {} s; see {}", PATIENCE.as_secs(), lab.path("log").display()),
    }
}
