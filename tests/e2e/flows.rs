//! Options with a state: which flows a tap mirrors, and how many frames.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use podtap_tests::{
    capture::{Capture, Difference, Frame, FrameDirection},
    cluster::{in_network, namespace_of_node, udp_socket},
    namespace::within,
    wait::{uninterrupted, until},
};

use crate::{
    options::tap,
    packet::{ICMP, Packet, TCP, UDP},
    scene::{Scene, address, apply_example, arrives, arrives_among, as_on_the_wire, capture, deduplicates},
};

fn parsed(address: &str) -> Ipv4Addr {
    address.parse().expect("the lab's pods have IPv4")
}

/// MAC address of the pod at which the frames were captured.
fn hardware(frames: &[Frame]) -> Vec<u8> {
    frames.iter().find(|f| f.direction == FrameDirection::Out).expect("the pod sent something").bytes[6..12].to_vec()
}

/// The frames of the interface with this MAC address. Pods of two nodes never see each other's MAC address.
fn of_hardware(frames: &[Frame], address: &[u8]) -> Vec<Frame> {
    frames.iter().filter(|f| f.bytes[..6] == *address || f.bytes[6..12] == *address).cloned().collect()
}

const ECHO: u16 = 7007;

/// The given number of UDP flows and of TCP flows, with requests and answers, from `client` to the port `ECHO` of `server`.
fn exchanges(client: &Path, server: &Path, to: Ipv4Addr, flows: usize) {
    let to = SocketAddrV4::new(to, ECHO);
    let mut buffer = [0; 64];
    let echo = udp_socket(server, ECHO).expect("the port is free");
    echo.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    // All open at the same time, so that no two have the same port.
    let sockets: Vec<_> = (0..flows).map(|_| udp_socket(client, 0).expect("a socket can be made")).collect();
    for socket in sockets {
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
        for word in [b"one", b"two"] {
            socket.send_to(word, to).expect("it can be sent");
            let (length, from) = uninterrupted(|| echo.recv_from(&mut buffer)).expect("it arrives");
            echo.send_to(&buffer[..length], from).expect("it can be answered");
            uninterrupted(|| socket.recv(&mut buffer)).expect("the answer arrives");
        }
    }
    let listener = within(server, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, ECHO))).expect("the port is free");
    let mut streams = Vec::new();
    for _ in 0..flows {
        let mut stream = within(client, move || TcpStream::connect(to)).expect("it connects");
        let (mut accepted, _) = listener.accept().expect("it is accepted");
        stream.write_all(b"question").expect("it can be sent");
        accepted.read_exact(&mut buffer[..8]).expect("it arrives");
        accepted.write_all(b"answer").expect("it can be answered");
        drop(accepted);
        stream.read_to_end(&mut Vec::new()).expect("the answer arrives");
        streams.push(stream);
    }
}

/// Frames of the flows of [`exchanges`], by protocol and client port.
fn by_flow(frames: &[Frame]) -> BTreeMap<(u8, u16), Vec<Frame>> {
    let mut flows: BTreeMap<_, Vec<Frame>> = BTreeMap::new();
    for frame in frames {
        let Some(packet) = Packet::of(&frame.bytes).filter(|packet| packet.ports.contains(&ECHO)) else { continue };
        let port = if packet.ports[0] == ECHO { packet.ports[1] } else { packet.ports[0] };
        flows.entry((packet.protocol, port)).or_default().push(frame.clone());
    }
    flows
}

#[test]
fn a_sample_has_whole_flows_and_the_same_on_both_nodes() {
    const FLOWS: usize = 300;
    let scene = Scene::new("sample");
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&client, "eth0");
    scene.sandbox.apply(&tap("both", "web, client", "trt-sample", "sample: {oneInFlows: 5}"));
    scene.sandbox.ready("both");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "trt-sample");
    let pods = [Capture::start(&web, "eth0"), Capture::start(&client, "eth0")];
    exchanges(&client, &web, parsed(&address(&scene.web)), FLOWS);

    let chosen = until("both ends' mirrored flows are the same, and complete", Duration::from_secs(10), || {
        let received = receiver.so_far();
        let mut chosen: Vec<BTreeSet<_>> = Vec::new();
        for pod in &pods {
            let sent = pod.so_far();
            let arrived = by_flow(&of_hardware(&received, &hardware(&sent)));
            let sent = by_flow(&sent);
            if sent.len() != 2 * FLOWS {
                return Err(format!("{} flows at the pod", sent.len()));
            }
            for (flow, frames) in &arrived {
                let difference = Difference::between(&sent[flow], frames);
                if !difference.is_none() {
                    return Err(format!("{flow:?}: {difference}"));
                }
            }
            chosen.push(arrived.into_keys().collect());
        }
        let differ: Vec<_> = chosen[0].symmetric_difference(&chosen[1]).collect();
        if differ.is_empty() { Ok(chosen[0].clone()) } else { Err(format!("only one end chose {differ:?}")) }
    });
    // 4 standard deviations of a binomial distribution: by chance, one run in 16,000 fails.
    for (protocol, name) in [(UDP, "UDP"), (TCP, "TCP")] {
        let count = chosen.iter().filter(|(p, _)| *p == protocol).count();
        println!("{name}: {count} of {FLOWS} flows");
        let off = count.abs_diff(FLOWS / 5);
        assert!(off * off <= 16 * FLOWS * 4 / 25, "{count} of {FLOWS} flows of {name}, expected one in 5");
    }
    let _ = (pods.map(Capture::stop), receiver.stop());
}

#[test]
fn a_limit_is_kept() {
    let scene = Scene::new("limit");
    let web = scene.sandbox.network(&scene.web);
    // A ping of 1000 bytes is a frame of 1042.
    let taps = [("frames", "packetsPerSecond: 200", 200.0), ("bits", "bitsPerSecond: 833600", 100.0)];
    for (name, limit, _) in taps {
        // Filtered frames do not count.
        let options = format!("filter: {{include: [{{protocol: ICMP}}]}}\n  limit: {{{limit}}}");
        scene.sandbox.apply(&tap(name, "web", &format!("trt-{name}"), &options));
        scene.sandbox.ready(name);
    }
    let n2 = namespace_of_node(scene.sandbox.lab(), "n2");
    let receivers = taps.map(|(name, _, rate)| (name, rate, capture(&n2, &format!("trt-{name}"))));
    let pod = Capture::start(&web, "eth0");
    let arguments = ["ping", "-q", "-i", "0.001", "-c", "3000", "-s", "1000"];
    let result = in_network(&scene.sandbox.network(&scene.client), &[&arguments[..], &[&address(&scene.web)]].concat());
    assert!(result.contains("3000 received"), "the pod's own traffic loses nothing: {result}");

    let mut frames = pod.stop();
    frames.retain(|frame| Packet::of(&frame.bytes).is_some_and(|packet| packet.protocol == ICMP));
    assert!(frames.len() >= 6000, "{}", frames.len());
    let seconds = frames[frames.len() - 1].at.duration_since(frames[0].at).as_secs_f64();
    for (name, rate, receiver) in receivers {
        // Plus the tokens at the first frame: at most 50 ms of the rate.
        let expected = rate * (seconds + 0.05);
        let counted = |count: usize| f64::from(u32::try_from(count).expect("they are few"));
        until(&format!("{name}: about {expected:.0} mirrored frames"), Duration::from_secs(10), || {
            let there = counted(receiver.count(|_| true));
            if there >= expected * 0.95 { Ok(()) } else { Err(there) }
        });
        let there = counted(receiver.stop().len());
        println!("{name}: {there} mirrored frames, expected {expected:.1}: {:+.2} %", (there / expected - 1.0) * 100.0);
        assert!(there <= expected * 1.05, "{name}: {there} mirrored frames, expected {expected:.1}");
    }
}

#[test]
fn a_flow_between_tapped_pods_is_mirrored_once() {
    let scene = Scene::new("once");
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&client, "eth0");
    scene.sandbox.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{app: web}}\n  ports:\n  \
         - {{name: http, port: 8080, targetPort: 80}}\n  - {{name: udp, port: {ECHO}, protocol: UDP}}\n  \
         - {{name: tcp, port: {ECHO}}}\n"
    ));
    let service =
        scene.sandbox.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"], "").expect("an address");
    let download = format!("timeout 2 wget -q -O /dev/null http://{service}:8080/f");
    until("the service leads to the web server", Duration::from_secs(20), || scene.sandbox.in_pod("client", &download));
    let n2 = namespace_of_node(scene.sandbox.lab(), "n2");
    // Only IP: ARP frames belong to no flow, and each pod has its own.
    let filter = "filter: {include: [{cidrs: [0.0.0.0/0]}]}";
    for (name, deduplicate) in [("once", "\n  deduplicate: {}"), ("twice", "")] {
        let interface = format!("trt-{name}");
        scene.sandbox.apply(&tap(name, "web, client", &interface, &format!("{filter}{deduplicate}")));
        scene.sandbox.ready(name);
    }
    deduplicates(&scene.sandbox, "once", 2);
    let [once, twice] = ["trt-once", "trt-twice"].map(|interface| capture(&n2, interface));
    let pods = [Capture::start(&web, "eth0"), Capture::start(&client, "eth0")];
    for to in [parsed(&address(&scene.web)), parsed(&service)] {
        exchanges(&client, &web, to, 20);
    }
    scene.sandbox.in_pod("client", &download).expect("the service answers");
    scene
        .sandbox
        .in_pod("client", &format!("wget -q -O /dev/null http://{}/f", address(&scene.web)))
        .expect("the web server answers");
    in_network(&client, &["ping", "-q", "-c", "5", "-i", "0.1", &address(&scene.web)]);
    // In the opposite direction.
    exchanges(&web, &client, parsed(&address(&scene.client)), 10);

    let at = |pod: &Capture, expected: &dyn Fn(&Frame) -> bool| {
        let mut frames = pod.so_far();
        frames.retain(|frame| Packet::of(&frame.bytes).is_some() && expected(frame));
        frames
    };
    let served_by_client = (parsed(&address(&scene.client)), ECHO);
    let web_is_higher = parsed(&address(&scene.web)) > parsed(&address(&scene.client));
    let at_web = |frame: &Frame| {
        let Some(packet) = Packet::of(&frame.bytes) else { return false };
        let ends = [(packet.source, packet.ports[0]), (packet.destination, packet.ports[1])];
        ends.contains(&served_by_client) || packet.protocol == ICMP && web_is_higher
    };
    // From the end with the higher port, or without ports, the higher address.
    arrives(&once, || [at(&pods[0], &at_web), at(&pods[1], &|f| !at_web(f))].concat());
    arrives(&twice, || [at(&pods[0], &|_| true), at(&pods[1], &|_| true)].concat());
    let by_service =
        |frame: &Frame| Packet::of(&frame.bytes).is_some_and(|p| [p.source, p.destination].contains(&parsed(&service)));
    assert!(pods[1].count(by_service) > 1000, "the client has used the service's address");
    let _ = (pods.map(Capture::stop), once.stop(), twice.stop());
}

/// The example, in a namespace with a pod that is not tapped, behind a Service of its own.
#[test]
fn whatever_leaves_a_deduplicated_namespace_is_mirrored_in_full() {
    let scene = Scene::new("all-once");
    let dns = scene.sandbox.pod("dns", "n1", "dns");
    scene.sandbox.kubectl(&["label", "pod", "dns", "podtap.dev/exclude=true"], "").expect("a pod can be labelled");
    scene.sandbox.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec:\n  selector: {app: dns}\n  ports:\n  \
         - {port: 53, targetPort: 5353, protocol: UDP}\n",
    );
    let service = ["get", "service", "dns", "-o", "jsonpath={.spec.clusterIP}"];
    let service = parsed(&scene.sandbox.kubectl(&service, "").expect("an address"));
    let client = scene.sandbox.network(&scene.client);
    as_on_the_wire(&client, "eth0");
    as_on_the_wire(&scene.sandbox.network(&scene.web), "eth0");
    apply_example(&scene.sandbox, "tap-namespace-once.yaml", "all-once", ["once", "trt-all-once"], 2);

    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "trt-all-once");
    let pod = Capture::start(&client, "eth0");
    // The lab has no DNS server: only the requests matter.
    let _ = scene.sandbox.in_pod("client", "timeout 5 nslookup web");
    let server = udp_socket(&scene.sandbox.network(&dns), 5353).expect("the port is free");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    let socket = udp_socket(&client, 0).expect("a socket can be made");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout can be set");
    let mut buffer = [0; 64];
    // kube-proxy learns of the endpoint a moment after the pod runs.
    until("the service leads to the pod", Duration::from_secs(20), || {
        socket.send_to(b"question", (service, 53)).map_err(|error| error.to_string())?;
        server.set_read_timeout(Some(Duration::from_millis(200))).map_err(|error| error.to_string())?;
        let (_, from) = server.recv_from(&mut buffer).map_err(|error| error.to_string())?;
        server.send_to(b"answer", from).map_err(|error| error.to_string())?;
        socket.recv(&mut buffer).map_err(|error| error.to_string())
    });
    // And a flow between two tapped pods, in the same capture.
    let web = format!("wget -q -O /dev/null http://{}/f", address(&scene.web));
    scene.sandbox.in_pod("client", &web).expect("the web server answers");

    // Without ARP, which belongs to no flow.
    let is_ip = |frame: &Frame| Packet::of(&frame.bytes).is_some();
    arrives_among(&receiver, is_ip, || {
        let mut frames = pod.so_far();
        frames.retain(is_ip);
        frames
    });
    let to_port_53 = |to: &dyn Fn(Ipv4Addr) -> bool| {
        receiver.count(|frame| {
            Packet::of(&frame.bytes).is_some_and(|p| p.protocol == UDP && p.ports[1] == 53 && to(p.destination))
        })
    };
    assert!(to_port_53(&|address| address != service) > 0, "the requests of nslookup");
    assert!(to_port_53(&|address| address == service) > 0, "the request to the service");
    let _ = (pod.stop(), receiver.stop());
}
