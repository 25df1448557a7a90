//! Addresses that pods use one after the other, in the map.

use std::{collections::BTreeSet, env, sync::PoisonError};

use podtap_tests::{
    cluster::Sandbox,
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::{
    map::{Forward, MAP, of_namespace, tap_all},
    scene::{address, enable_collector},
};

/// The pods that have the address in turn. Each calls a server of its own, and is called by a caller of its own.
const TURNS: [&str; 2] = ["red", "blue"];

/// The calls that are made.
fn calls() -> BTreeSet<(String, String)> {
    let of = |turn: &str| [(turn.to_owned(), format!("{turn}-server")), (format!("{turn}-caller"), turn.to_owned())];
    TURNS.into_iter().flat_map(of).collect()
}

/// Those in a list, as the Otterize CLI prints it.
fn listed(list: &str) -> BTreeSet<(String, String)> {
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let mut calls = BTreeSet::new();
    let mut client = String::new();
    for line in list.lines() {
        match line.strip_prefix("  - ") {
            Some(server) => drop(calls.insert((client.clone(), name(server)))),
            None => client = name(line),
        }
    }
    calls
}

/// Has the node's IPAM (host-local) give this address to its next pod, when the one that had it is gone.
fn give_next(sandbox: &Sandbox, node: &str, address: &str) {
    let (network, last) = address.rsplit_once('.').expect("an IPv4 address");
    let before = last.parse::<u8>().expect("a byte") - 1;
    let directory = "/var/lib/cni/networks/lab";
    let free = format!("! test -e {directory}/{address} && printf {network}.{before} >{directory}/last_reserved_ip.0");
    // A pod without a grace period is deleted before it ends.
    until("the address is free", PATIENCE, || sandbox.lab().on_node(node, &free));
}

/// The address changes its owner 6 times, or `PODTAP_REUSES` times. A pod calls, and is called, for as long as it lives.
#[test]
fn an_address_that_is_used_again_makes_no_false_edge() {
    let _alone = MAP.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new("reuse");
    let (lab, namespace) = (sandbox.lab(), sandbox.namespace());
    enable_collector(lab);
    tap_all(&sandbox);
    let serve = "mkdir /w; hostname >/w/index.html; httpd -h /w -p 8080";
    let server = |turn: &str| {
        sandbox.start(&format!("{turn}-caller"), "n2", "caller", "sleep 3600");
        sandbox.start(&format!("{turn}-server"), "n2", "server", &format!("{serve}; sleep 3600"));
        address(&sandbox.running(&format!("{turn}-server")))
    };
    let servers = TURNS.map(server);
    sandbox.ready("map");
    let forward = Forward::start(lab);
    let reuses = env::var("PODTAP_REUSES").ok().map_or(6, |text| text.parse().expect("a number"));
    let (mut used, mut count, mut round): (Option<String>, usize, usize) = (None, 0, 0);
    while count < reuses {
        assert!(round < 3 * reuses + 10, "only {count} of {round} pods had the address of the one before");
        let (turn, server) = (TURNS[round % 2], &servers[round % 2]);
        round += 1;
        if let Some(address) = &used {
            give_next(&sandbox, "n1", address);
        }
        let call =
            format!("{serve}; while :; do timeout 3 wget -q -O /dev/null http://{server}:8080/; sleep 0.1; done");
        sandbox.start(turn, "n1", "turn", &call);
        let pod = address(&sandbox.running(turn));
        // Another test may have got it.
        count += usize::from(used.replace(pod.clone()).is_some_and(|before| before == pod));
        let call = format!("for number in 1 2 3; do wget -q -O /dev/null http://{pod}:8080/; done");
        sandbox.in_pod(&format!("{turn}-caller"), &call).expect("it answers");
        sandbox.kubectl(&["delete", "pod", turn], "").expect("a pod can be deleted");
        let known = listed(&of_namespace(&forward.get("/map?format=list").expect("a list"), namespace));
        assert!(known.is_subset(&calls()), "round {round}: {known:?}");
    }
    until("all calls are in the map, and no others", PATIENCE, || {
        let known = listed(&of_namespace(&forward.get("/map?format=list")?, namespace));
        if known == calls() { Ok(()) } else { Err(format!("{known:?}")) }
    });
    // Each of their flows is of the pod that had the address then.
    let flows = forward.get(&format!("/flows?limit=10000&SrcK8S_Namespace={namespace}")).expect("flows");
    let mut found = 0;
    for line in flows.lines() {
        let flow: Value = serde_json::from_str(line).expect("an object");
        let name = |end: &str| flow[format!("{end}K8S_Name")].as_str().unwrap_or_default().to_owned();
        let (from, to) = (name("Src"), name("Dst"));
        let is_made = calls().contains(&(from.clone(), to.clone())) || calls().contains(&(to.clone(), from.clone()));
        assert!(is_made, "{flow}");
        found += 1;
    }
    println!("{count} pods had the address of another one before; {found} flows and directions, all of the right pods");
    assert!(found >= 4 * count, "{found}");
}
