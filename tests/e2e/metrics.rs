//! The metrics of a node, at its helper pod's `/metrics`.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use podtap_tests::{
    cluster::{Cluster, namespace_of_node},
    namespace::within,
    wait::until,
};

use crate::{
    controller::Setting,
    scene::{Scene, node_address},
};

/// The port that the test sets; by default, there is none.
const PORT: u16 = 14790;

/// The answer to a GET of `path` at a node's own address, from the node's network: status line, headers and body.
fn get(scene: &Scene, node: &str, path: &str) -> String {
    let address: IpAddr = node_address(node).parse().expect("a node's address is one");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    // An earlier helper pod may still be terminating, and have the port.
    until("the helper pod answers", Duration::from_secs(60), || {
        let answer =
            within(&namespace_of_node(scene.sandbox.lab(), node), ask.clone()).map_err(|error| error.to_string())?;
        if answer.starts_with("HTTP/1.1 200 ") { Ok(answer) } else { Err(answer) }
    })
}

/// Frames of the scene's tap by direction and outcome.
fn frames(scene: &Scene, direction: &str, outcome: &str) -> u64 {
    let answer = get(scene, "n1", "/metrics");
    let namespace = scene.sandbox.namespace();
    let series = format!(
        "podtap_frames_total{{tap_namespace=\"{namespace}\",tap_name=\"web\",pod_namespace=\"{namespace}\",\
         pod_name=\"web\",interface=\"eth0\",direction=\"{direction}\",outcome=\"{outcome}\"}} "
    );
    let value = answer.lines().find_map(|line| line.strip_prefix(&series));
    value.unwrap_or_else(|| panic!("no {series}in {answer}")).parse().expect("a counter is a number")
}

/// A port that answers would tell a tapped pod that it is tapped.
fn nothing_listens_on(node: &str) {
    let address: IpAddr = node_address(node).parse().expect("a node's address is one");
    let connect = move || match TcpStream::connect_timeout(&SocketAddr::new(address, PORT), Duration::from_secs(5)) {
        Ok(_) => Err(io::Error::other("something listens")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    };
    within(&namespace_of_node(Cluster::lab(), node), connect).expect("the connection is refused");
}

#[test]
fn frames_of_a_tap_are_counted_under_its_name() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("metrics");
    scene.sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  targets: {podNames: [web]}\n  \
         filter: {exclude: [{protocol: ICMP}]}\n  destinations: [{node: {name: n2, interfaceName: met-frames}}]\n",
    );
    scene.sandbox.ready("web");
    nothing_listens_on("n1");
    let _setting = Setting::set("HELPER_METRICS_PORT", &PORT.to_string());
    let all = [("ingress", "mirrored"), ("egress", "mirrored"), ("ingress", "filtered"), ("egress", "filtered")];
    let before = all.map(|(direction, outcome)| frames(&scene, direction, outcome));
    scene.traffic();
    // The agent serves an answer again for a moment.
    until("all series rise", Duration::from_secs(10), || {
        let after = all.map(|(direction, outcome)| frames(&scene, direction, outcome));
        let rises = before.iter().zip(&after).all(|(before, after)| after > before);
        if rises { Ok(()) } else { Err(format!("{all:?}: {before:?}, then {after:?}")) }
    });
    for path in ["/livez", "/readyz"] {
        assert!(get(&scene, "n1", path).ends_with("ok\n"), "{path}");
    }
}
