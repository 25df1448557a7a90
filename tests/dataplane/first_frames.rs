//! Pods are mirrored from their first frame, also when many start at once or the node is busy.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use podtap_model::{
    Deduplicate, Direction, Filter, Instruction, Limit, Program, ProgramId, Reason, SenderStatus, State,
};
use podtap_tests::{
    capture::{Capture, Frame},
    net::{Background, Desired, Helper, Network, Node, Pod, Sender},
    wait::until,
    yardstick::Yardstick,
};

use crate::scene::{Scene, TAP, VNI, desired, receiver, remote_endpoint, sender};

/// Pods in a burst.
const PODS: u32 = 20;
/// What a runtime needs at least between a sandbox's first process and the pod's first container.
const UNTIL_CONTAINER: Duration = Duration::from_millis(90);
/// A tap that is established before the burst.
const OTHER: &str = "tap-b";

/// The pod that sent a SYN.
fn opened_by(frame: &Frame) -> Option<IpAddr> {
    let bytes = &frame.bytes;
    let is_tcp = bytes.len() >= 54 && bytes[12..14] == [8, 0] && bytes[14] == 0x45 && bytes[23] == 6;
    let source = || Ipv4Addr::new(bytes[26], bytes[27], bytes[28], bytes[29]);
    (is_tcp && bytes[47] & 0x12 == 0x02).then(|| source().into())
}

/// A server on the client's network that accepts connections and closes them.
fn server(client: &Network, connections: usize) -> (SocketAddr, thread::JoinHandle<()>) {
    let address = crate::scene::addresses(client)[0];
    let listener = client.within(|| TcpListener::bind((address, 0))).expect("the address exists");
    let address = listener.local_addr().expect("the socket is bound");
    let serve = move || listener.incoming().take(connections).for_each(drop);
    (address, thread::spawn(serve))
}

/// Starts the pods at once, each of which connects as soon as its container could, and expects the SYN of each at the receiver.
#[track_caller]
fn assert_first_frames(
    (node, client, remote): (&Node, &Network, &Node),
    pods: &mut [Pod],
    until_container: impl Fn() + Sync,
) {
    let capture = Capture::start(remote.network().path(), "mirror0");
    let (address, server) = server(client, pods.len());
    thread::scope(|scope| {
        for pod in &mut *pods {
            scope.spawn(|| {
                pod.run(node);
                until_container();
                pod.network().within(|| TcpStream::connect(address)).expect("the server accepts");
            });
        }
    });
    server.join().expect("the server does not panic");
    let expected: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.addresses[0]).collect();
    let missing = || {
        let frames = capture.so_far();
        let seen: BTreeSet<IpAddr> = frames.iter().filter_map(opened_by).collect();
        expected.difference(&seen).copied().collect::<Vec<_>>()
    };
    until("the first frame of each pod is mirrored", Duration::from_secs(3), || match missing() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(format!("{} of {} are missing: {missing:?}", missing.len(), expected.len())),
    });
}

/// Waits as long as a container runtime takes at least, and as many rounds of the yardstick. Not a wait for a condition: this is when a
/// container that is ready at once sends its first frame.
fn container(yardstick: &Yardstick, rounds: u64) {
    thread::sleep(UNTIL_CONTAINER);
    yardstick.wait(rounds);
}

/// As the controller announces a pod once it is bound.
fn announced(tap: &str, pod: &Pod) -> Sender {
    let mut sender = sender(tap, pod, Direction::Both, &[remote_endpoint(VNI)]);
    sender.pod.addresses.clear();
    sender
}

/// The time from the start of a pod until it is tapped, in rounds of the yardstick: the longest of some that start one after the other
/// under a tap without options.
fn single(scene: &mut Scene, pods: &mut Vec<Pod>, senders: &mut Vec<Sender>, yardstick: &Yardstick) -> u64 {
    let mut longest = 0;
    for generation in 1..4 {
        let mut pod = Pod::prepared(&scene.node);
        senders.push(announced(OTHER, &pod));
        scene.agent.request(&Desired { generation, ..desired(senders.clone(), vec![]) });
        scene.agent.until("the pod is awaited", |report| report.observed_generation == Some(generation));
        let start = yardstick.rounds();
        pod.run(&scene.node);
        scene.agent.until("the pod is tapped", |report| report.senders.iter().all(|s| s.state == State::Active));
        // The last one counts, too.
        longest = longest.max(yardstick.rounds() - start + 1);
        pods.push(pod);
    }
    longest
}

/// Announces pods to the helper and starts them at once when it knows them.
///
/// On a machine with enough cores, the first frame is due when a container can be ready. With fewer, or with other work, container
/// runtimes are slower, too: a pod of a burst has the time that so many pods need one after the other.
fn burst(change: impl Fn(&mut Sender)) {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.remote.network().wait_for_carrier();
    let (mut running, mut senders) = (Vec::new(), Vec::new());
    let yardstick = Yardstick::start();
    let single = single(&mut scene, &mut running, &mut senders, &yardstick);
    let mut pods: Vec<Pod> = (0..PODS).map(|_| Pod::prepared(&scene.node)).collect();
    senders.extend(pods.iter().map(|pod| {
        let mut sender = announced(TAP, pod);
        change(&mut sender);
        sender
    }));
    scene.agent.request(&Desired { generation: 9, ..desired(senders, vec![]) });
    let status = scene.agent.until("the pods are awaited", |report| report.observed_generation == Some(9));
    let waiting = status.senders.iter().filter(|sender| sender.reason == Reason::PodNotRunning).count();
    assert_eq!(waiting, pods.len(), "{status:?}");
    assert_first_frames((&scene.node, &scene.client, &scene.remote), &mut pods, || {
        container(&yardstick, u64::from(PODS) * single);
    });
    // However fast the machine is: the kernel's verifier takes longest, and runs once for each tap.
    scene.agent.until("all are tapped", |report| report.senders.iter().all(|s| s.state == State::Active));
    for of_tap in [&pods, &running] {
        let loaded: BTreeSet<Vec<u64>> = of_tap.iter().map(|pod| pod.network().programs("eth0")).collect();
        assert!(loaded.len() == 1 && loaded.iter().all(|programs| programs.len() == 2), "{loaded:?}");
    }
}

#[test]
fn of_a_burst_of_pods() {
    burst(|_| ());
}

#[test]
fn of_a_burst_of_pods_whose_flows_are_cut_off() {
    burst(|sender| sender.tap.options.limit = Some(Limit { bytes_per_flow: Some(65_536.into()), ..Limit::default() }));
}

#[test]
fn of_a_burst_of_pods_under_an_expression() {
    // `ret #262144`, as libpcap compiles an expression that matches everything.
    let instructions = vec![Instruction { code: 6, jt: 0, jf: 0, k: 262_144 }];
    let program = Program { id: ProgramId::from_digest([7; 32]), instructions };
    let filter = Filter { expression: Some("less 262144".to_owned()), ..Filter::default() };
    burst(|sender| {
        sender.tap.options.filter = Some(filter.clone());
        sender.program = Some(program.clone());
    });
}

#[test]
fn of_a_burst_of_pods_under_deduplication() {
    burst(|sender| {
        sender.tap.options.deduplicate = Some(Deduplicate::default());
        // No pod of this node.
        sender.tap.peers = vec![[192, 0, 2, 1].into()];
    });
}

/// The kernel takes seconds for a set here: what was loaded before is used.
#[test]
fn of_a_pod_that_runs_while_programs_are_loaded() {
    let mut scene = Scene::new();
    scene.helper.kill();
    scene.helper = Helper::slow_to_load(&scene.node);
    scene.agent = scene.helper.agent();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.remote.network().wait_for_carrier();
    let mut pods = [Pod::prepared(&scene.node)];
    scene.agent.request(&desired(vec![announced(TAP, &pods[0])], vec![]));
    scene.agent.until("the pod is awaited", |report| report.observed_generation == Some(1));
    assert_first_frames((&scene.node, &scene.client, &scene.remote), &mut pods, || {
        // Not a wait for a condition either: a set takes longer than that here.
        thread::sleep(Duration::from_secs(2));
    });
}

/// Node with two thousand new processes per second and more, most of which end at once.
#[test]
fn of_pods_that_start_during_a_fork_storm() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.remote.network().wait_for_carrier();
    let (mut running, mut senders) = (Vec::new(), Vec::new());
    let yardstick = Yardstick::start();
    let single = single(&mut scene, &mut running, &mut senders, &yardstick);
    let mut pods: Vec<Pod> = (0..6).map(|_| Pod::prepared(&scene.node)).collect();
    senders.extend(pods.iter().map(|pod| announced(TAP, pod)));
    scene.agent.request(&Desired { generation: 9, ..desired(senders, vec![]) });
    scene.agent.until("the pods are awaited", |report| report.observed_generation == Some(9));

    let mut storm = Background::start(&scene.node, "while :; do (:); (:); (:); (:); sleep 0.3 & done");
    storm.until_forked(8000);
    for pod in pods.chunks_mut(1) {
        // The storm takes a core, of two.
        assert_first_frames((&scene.node, &scene.client, &scene.remote), pod, || container(&yardstick, 3 * single));
    }
}

/// As when a scraper, or anyone who reaches the metrics port, requests counters without pause.
#[test]
fn of_pods_that_start_while_counters_are_requested() {
    const TAPS: usize = 3;
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.remote.network().wait_for_carrier();
    let (mut running, mut senders) = (Vec::new(), Vec::new());
    let yardstick = Yardstick::start();
    let single = single(&mut scene, &mut running, &mut senders, &yardstick);
    // Counters that take a while.
    let many: Vec<Pod> = (0..10).map(|_| Pod::start(&scene.node)).collect();
    for (number, pod) in many.iter().flat_map(|pod| (0..TAPS).map(move |number| (number, pod))) {
        senders.push(sender(&format!("tap-{number}"), pod, Direction::Both, &[remote_endpoint(VNI + 1)]));
    }
    let mut pods: Vec<Pod> = (0..6).map(|_| Pod::prepared(&scene.node)).collect();
    let active = senders.len();
    senders.extend(pods.iter().map(|pod| announced(TAP, pod)));
    scene.agent.request(&Desired { generation: 9, ..desired(senders, vec![]) });
    let is_active = |sender: &&SenderStatus| sender.state == State::Active;
    scene.agent.until("the others are tapped", |report| report.senders.iter().filter(is_active).count() == active);

    let Scene { agent, node, client, remote, .. } = &mut scene;
    let done = AtomicBool::new(false);
    let read = thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let requests = (1..).take_while(|_| !done.load(Ordering::Relaxed));
            requests.map(|request| agent.counters(request).senders.len()).max()
        });
        let result = catch_unwind(AssertUnwindSafe(|| {
            for pod in pods.chunks_mut(1) {
                assert_first_frames((node, client, remote), pod, || container(&yardstick, 3 * single));
            }
        }));
        done.store(true, Ordering::Relaxed);
        let read = scraper.join().expect("the helper answers");
        result.unwrap_or_else(|panic| resume_unwind(panic));
        read
    });
    assert!(read >= Some(active), "{read:?} of {active} senders");
}
