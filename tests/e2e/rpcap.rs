//! Frames of a real tap, which the collector's container `sensor` sends to sensors outside of the cluster and to clients inside.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use nix::sys::socket::{setsockopt, sockopt};
use podtap_tests::{
    capture::{Capture, Difference, Frame, FrameDirection},
    checksum,
    cluster::{Cluster, PODTAP_NAMESPACE, in_network, namespace_of_node, namespace_of_pod},
    net::Network,
    rpcap::{Client, DATAGRAMS, PACKET, Packed, filter, packet, receive},
    streams::Content,
    wait::{PATIENCE, uninterrupted, until},
};
use serde_json::{Value, json};

use crate::{
    map::Forward,
    packet::{Packet, TCP},
    scene::{CollectorValues, NoPolicy, Scene, address, allow_external, as_on_the_wire, outside},
};

/// Where sensors wait for a connection.
const PORTS: [u16; 2] = [2003, 2004];
/// Where clients connect to.
const LISTEN: u16 = 2002;
/// The tap of the web server by its label, for the map as well as for sensors: see docs/from-extrahop.md.
const TAP: &str = "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
    targets: {podSelector: {matchLabels: {app: web}}}\n  destinations: [{collector: {}}]\n  \
    truncate: {bytes: 65535}\n  deduplicate: {}\n";

/// The container `sensor` of the collector's only pod.
struct Sender {
    lab: &'static Cluster,
    pod: String,
    address: String,
    network: PathBuf,
}

impl Sender {
    /// As soon as earlier pods of the collector are gone: a tap chooses one of them.
    fn of(lab: &'static Cluster) -> Self {
        until("there is one collector, which has the container", PATIENCE, || {
            let pods: Vec<Pod> = lab.list(PODTAP_NAMESPACE);
            let label = ("app.kubernetes.io/component", "collector");
            let is_collector = |pod: &&Pod| pod.labels().get(label.0).is_some_and(|value| value == label.1);
            let found: Vec<&Pod> = pods.iter().filter(is_collector).collect();
            match &found[..] {
                [pod] if restarts(pod).is_some() => {
                    let uid = pod.uid().expect("a stored pod has a UID");
                    let network = namespace_of_pod(&uid).map_err(|error| error.to_string())?;
                    Ok(Self { lab, pod: pod.name_any(), address: address(pod), network })
                }
                others => Err(format!("{:?}", others.iter().map(|pod| pod.name_any()).collect::<Vec<_>>())),
            }
        })
    }

    /// Whether it runs, and has never ended.
    fn is_up(&self) -> bool {
        self.lab.get::<Pod>(PODTAP_NAMESPACE, &self.pod).is_some_and(|pod| restarts(&pod) == Some(0))
    }

    /// Waits until its receiver shows frames as on the wire, up to a second after it was created.
    fn until_it_segments(&self) {
        until("the tap-helper has found the readers of the receiver", PATIENCE, || {
            let links = in_network(&self.network, &["ip", "link"]);
            if links.contains("readers=unreported") { Ok(()) } else { Err(links) }
        });
    }

    fn logs(&self) -> Result<String, String> {
        self.lab.kubectl(&["-n", PODTAP_NAMESPACE, "logs", &self.pod, "-c", "sensor"], "")
    }

    /// The value of a metric about a sensor.
    fn metric(&self, name: &str, labels: &str) -> Result<u64, String> {
        let path = format!("/api/v1/namespaces/{PODTAP_NAMESPACE}/pods/{}:8083/proxy/metrics", self.pod);
        let text = self.lab.kubectl(&["get", "--raw", &path], "")?;
        let series = format!("podtap_sensor_{name}{{{labels}}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
        value.ok_or_else(|| format!("no {series}in {text}"))
    }
}

/// How often containers of a pod have ended. `None`: one that sends frames is not ready.
fn restarts(pod: &Pod) -> Option<i32> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let is_ready = containers.iter().any(|container| container.name == "sensor" && container.ready);
    is_ready.then(|| containers.iter().map(|container| container.restart_count).sum())
}

/// A sensor outside of the cluster, which waits for a connection.
struct Sensor<'a> {
    network: &'a Network,
    listener: TcpListener,
    /// As metrics call it.
    name: String,
}

impl<'a> Sensor<'a> {
    fn new(network: &'a Network, port: u16) -> Self {
        let address = outside();
        let listener = network.within(|| TcpListener::bind((&*address, port))).expect("the port is free");
        listener.set_nonblocking(true).expect("it can be set");
        Self { network, listener, name: format!("{address}:{port}") }
    }

    fn label(&self) -> String {
        format!("sensor=\"{}\"", self.name)
    }

    fn try_accept(&self) -> io::Result<Client<'a>> {
        let (control, _) = self.listener.accept()?;
        control.set_nonblocking(false)?;
        Ok(Client::new(self.network, control))
    }

    /// Opens what is captured from, once it is connected to.
    fn accept(&self) -> Client<'a> {
        let mut client = until(&format!("{} is connected to", self.name), PATIENCE, || self.try_accept());
        client.open();
        client
    }
}

/// The frames that a sensor or client has got.
struct Received {
    frames: Arc<Mutex<Vec<Frame>>>,
    /// By TCP.
    stream: Option<(TcpStream, JoinHandle<()>)>,
}

fn push(frames: &Mutex<Vec<Frame>>, frame: &[u8]) {
    let frame = Frame { direction: FrameDirection::Out, bytes: frame.to_vec(), at: Instant::now() };
    frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
}

impl Received {
    /// By rpcap, until the connection ends.
    fn by_tcp(mut data: TcpStream) -> Self {
        data.set_read_timeout(None).expect("it can be set");
        let (frames, end) = (Arc::<Mutex<Vec<Frame>>>::default(), data.try_clone().expect("it can be cloned"));
        let thread = thread::spawn({
            let frames = Arc::clone(&frames);
            move || {
                for expected in 1.. {
                    let Ok((kind, _, payload)) = receive(&mut data) else { break };
                    let (number, frame) = packet(&payload);
                    assert_eq!((kind, number), (PACKET, expected));
                    push(&frames, frame);
                }
            }
        });
        Self { frames, stream: Some((end, thread)) }
    }

    /// By udpstr, until this is dropped.
    fn by_udp(socket: UdpSocket) -> Self {
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("root may");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("it is not zero");
        let frames = Arc::<Mutex<Vec<Frame>>>::default();
        let theirs = Arc::downgrade(&frames);
        thread::spawn(move || {
            let (mut packed, mut datagram) = (Packed::default(), vec![0; 65_536]);
            while let Some(frames) = theirs.upgrade() {
                match uninterrupted(|| socket.recv(&mut datagram)) {
                    Ok(length) => packed.read(&datagram[..length], |_, frame| push(&frames, frame)),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
                }
            }
        });
        Self { frames, stream: None }
    }

    fn so_far(&self) -> Vec<Frame> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the connection, as when the program that reads it ends.
    fn close(&mut self) {
        let (stream, thread) = self.stream.take().expect("it comes by TCP");
        stream.shutdown(Shutdown::Both).expect("it is connected");
        thread.join().expect("each frame has its number");
    }
}

/// Waits until each frame of the pod has arrived once, equal to the byte, and nothing else. Leaves out what kernels send by themselves at any
/// time, because it may fall between the starts of two captures, and takes both forms of a checksum of zero for equal (see
/// [`checksum::unify_zero`]). Returns how many there are.
///
/// What the node itself sends comes with checksums left to the device: for example packets to an earlier pod, which the bridge floods to all of
/// its pods. Those of received frames have to be complete.
#[track_caller]
fn same_frames(pod: &Capture, received: &Received) -> usize {
    const ARP: [u8; 2] = [8, 6];
    let selected = |mut frames: Vec<Frame>| {
        frames.retain(|frame| !frame.is_announcement() && frame.bytes[12..14] != ARP);
        for frame in &mut frames {
            checksum::unify_zero(&mut frame.bytes);
        }
        frames
    };
    until("each frame of the pod has arrived once", PATIENCE, || {
        let (mut sent, received) = (pod.so_far(), selected(received.so_far()));
        for frame in &mut sent {
            checksum::complete(&mut frame.bytes);
        }
        let sent = selected(sent);
        let difference = Difference::between(&sent, &received);
        if sent.len() > 1000 && difference.is_none() {
            Ok(sent.len())
        } else {
            Err(format!("{} frames at the pod; {difference}", sent.len()))
        }
    })
}

/// Has the other end of the pod's connections send segments that the tap need not split to make them fit into VXLAN.
fn advertise_smaller_segments(network: &Path) {
    let route = in_network(network, &["ip", "-4", "route", "show", "default"]);
    let mut command = vec!["ip", "route", "replace"];
    command.extend(route.split_whitespace());
    command.extend(["advmss", "1300"]);
    in_network(network, &command);
}

/// Frames and bytes of payload that the web server has sent to each port of the client, as a capture shows it.
fn downloads(frames: &[Frame]) -> BTreeMap<u64, [u64; 2]> {
    let mut downloads: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
    let packets = frames.iter().filter_map(|frame| Packet::of(&frame.bytes));
    for packet in packets.filter(|packet| packet.protocol == TCP && packet.ports[0] == 80) {
        downloads.entry(packet.ports[1].into()).or_default()[0] += 1;
    }
    for (flow, stream) in Content::of(frames).streams {
        // Two addresses, and two ports.
        let [from, to] = [8, 10].map(|at| u64::from(u16::from_be_bytes([flow[at], flow[at + 1]])));
        if from == 80 {
            downloads.entry(to).or_default()[1] += stream.bytes.len() as u64;
        }
    }
    downloads
}

#[test]
fn each_frame_of_a_tap_reaches_clients_and_the_sensors_that_the_policy_allows_once() {
    let _alone = Cluster::alone();
    let lab = Cluster::lab();
    let _policy = NoPolicy::new();
    let outside_network = Network::open(&namespace_of_node(lab, "cp"));
    let [packed, plain] = PORTS.map(|port| Sensor::new(&outside_network, port));
    let sensors = PORTS.map(|port| json!({"host": outside(), "port": port}));
    let values = json!({"enabled": true, "sensors": sensors, "sensorListen": format!("[::]:{LISTEN}")});
    let _values = CollectorValues::set(lab, &values, json!({"sensors": [], "sensorListen": ""}));
    let sender = Sender::of(lab);
    let scene = Scene::alone("rpcap");
    let networks = [&scene.web, &scene.client].map(|pod| scene.sandbox.network(pod));
    for network in &networks {
        as_on_the_wire(network, "eth0");
    }
    let [web, client] = networks;
    advertise_smaller_segments(&client);
    scene.sandbox.apply(TAP);
    scene.sandbox.ready("web");
    sender.until_it_segments();

    // A client in a pod needs no policy.
    let client_network = Network::open(&client);
    let connect = || TcpStream::connect((sender.address.as_str(), LISTEN));
    let mut passive = Client::new(&client_network, client_network.within(connect).expect("it listens"));
    passive.open();
    let at_client = Received::by_tcp(passive.capture(&filter(&[])));
    let pod = Capture::start(&web, "eth0");
    scene.traffic();
    same_frames(&pod, &at_client);

    until("the policy refuses both sensors", PATIENCE, || {
        let logs = sender.logs()?;
        let is_refused = |sensor: &Sensor<'_>| {
            logs.lines().any(|line| line.contains(&sensor.name) && line.contains("allowedExternalCIDRs"))
        };
        if is_refused(&packed) && is_refused(&plain) { Ok(()) } else { Err(logs) }
    });
    for sensor in [&packed, &plain] {
        assert_eq!(sender.metric("connected", &sensor.label()), Ok(0));
        assert!(sender.metric("connection_failures_total", &sensor.label()).expect("a metric") > 0);
        assert_eq!(sensor.try_accept().expect_err("nothing has come").kind(), io::ErrorKind::WouldBlock);
    }

    allow_external(&outside());
    let (mut packed_client, mut plain_client) = (packed.accept(), plain.accept());
    let address_outside = outside();
    let any_port = (&*address_outside, 0);
    let socket = outside_network.within(|| UdpSocket::bind(any_port)).expect("a port");
    packed_client.start(DATAGRAMS, socket.local_addr().expect("an address").port(), 0, &filter(&[]));
    let at_packed = Received::by_udp(socket);
    let data = outside_network.within(|| TcpListener::bind(any_port)).expect("a port");
    plain_client.start(0, data.local_addr().expect("an address").port(), 0, &filter(&[]));
    let mut at_plain = Received::by_tcp(data.accept().expect("it connects").0);
    let allowed = Capture::start(&web, "eth0");
    scene.traffic();
    same_frames(&allowed, &at_plain);
    same_frames(&allowed, &at_packed);
    same_frames(&pod, &at_client);

    // A sensor that is gone: frames are no longer read, and nothing listens.
    let gone = plain.label();
    drop(plain);
    at_plain.close();
    scene.traffic();
    until("frames to it are dropped and counted", PATIENCE, || {
        let failed = sender.metric("frames_not_sent_total", &format!("{gone},reason=\"failed\""))?;
        let connected = sender.metric("connected", &gone)?;
        if failed > 0 && connected == 0 { Ok(()) } else { Err(format!("{failed} failed, {connected} connected")) }
    });
    assert_eq!(plain_client.control.read(&mut [0]).expect("its end"), 0);
    // It costs its own frames, and nothing else.
    let count = same_frames(&allowed, &at_packed);
    let of_client = same_frames(&pod, &at_client);
    for (client, count) in [(&mut packed_client, count), (&mut passive, of_client)] {
        until("all frames are counted, with ARP", PATIENCE, || match client.statistics() {
            [passed, 0, 0, sent] if passed == sent && sent as usize >= count => Ok(()),
            other => Err(format!("{other:?} of {count}")),
        });
    }
    assert!(sender.is_up(), "no container has ended");

    let forward = Forward::start(lab);
    let truth = downloads(&pod.so_far());
    assert_eq!(truth.len(), 12, "four at a time");
    let path = format!("/flows?limit=1000&SrcAddr={}&SrcPort=80", address(&scene.web));
    until("the collector has counted each frame of the downloads", PATIENCE, || {
        let text = forward.get(&path)?;
        let mut counted: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
        for flow in text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
            let number = |field: &str| flow[field].as_u64().expect("a number");
            let of_port = counted.entry(number("DstPort")).or_default();
            of_port[0] += number("Packets");
            of_port[1] += number("PayloadBytes");
            assert_eq!(flow["CollectorMissingBytes"], 0, "{flow}");
        }
        if counted == truth { Ok(()) } else { Err(format!("{counted:?} of {truth:?}")) }
    });
    let status: Value = serde_json::from_str(&forward.get("/status").expect("it is served")).expect("JSON");
    assert_eq!((&status["framesDropped"], &status["captured"]), (&0.into(), &"whole".into()), "{status}");
    let _ = (pod.stop(), allowed.stop());
}
