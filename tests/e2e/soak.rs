//! Random changes and faults. A model that knows only what was requested says after each of them which frames have to arrive where.
//!
//! `PODTAP_SOAK_MINUTES` sets how long it lasts (3), `PODTAP_SOAK_SEED` repeats a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::UdpSocket,
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use podtap_api::NodeTap;
use podtap_model::NodeState;
use podtap_tests::{
    capture::Capture,
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, namespace_of_node, traces, udp_socket},
    wait::until,
};

use crate::{
    packet::numbers,
    processes::pids,
    scene::{address, capture},
};

const TIMEOUT: Duration = Duration::from_secs(90);
const PORT: u16 = 7100;
const NODES: [&str; 2] = ["n1", "n2"];
const APPS: [&str; 2] = ["red", "blue"];
const DIRECTIONS: [&str; 3] = ["Both", "Ingress", "Egress"];

/// Numbers that follow from a seed: xorshift64* (Marsaglia 2003, Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % end
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn key<T>(&mut self, of: &BTreeMap<String, T>) -> Option<String> {
        if of.is_empty() { None } else { of.keys().nth(self.below(of.len())).cloned() }
    }
}

struct Member {
    uid: String,
    app: &'static str,
    address: String,
    network: PathBuf,
    socket: UdpSocket,
}

struct Tap {
    app: &'static str,
    direction: &'static str,
    node: &'static str,
    interface: String,
    /// None until it is Ready.
    receiver: Option<Capture>,
    /// The numbers that it has to have mirrored since then.
    expected: BTreeSet<u32>,
}

impl Tap {
    fn mirrors(&self, pod: &Member, direction: &str) -> bool {
        self.app == pod.app && (self.direction == "Both" || self.direction == direction)
    }
}

/// What was done. Printed after the message of a failure, of which reports may show no more than the beginning.
#[derive(Default)]
struct Steps(Vec<String>);

impl Drop for Steps {
    fn drop(&mut self) {
        if thread::panicking() {
            let first = self.0.len().saturating_sub(60);
            for (number, step) in self.0.iter().enumerate().skip(first) {
                println!("{}: {step}", number + 1);
            }
        }
    }
}

struct Model {
    sandbox: Sandbox,
    random: Random,
    pods: BTreeMap<String, Member>,
    taps: BTreeMap<String, Tap>,
    /// The other end of all datagrams, which no tap selects.
    peer: (String, UdpSocket),
    /// Names and numbers that were used.
    used: u32,
}

impl Model {
    fn next(&mut self) -> u32 {
        self.used += 1;
        self.used
    }

    /// One random change or fault; what it was.
    fn step(&mut self) -> String {
        match self.random.below(12) {
            0 | 1 if self.pods.len() < 6 => self.add_pod(),
            2 => self.delete_pod(),
            3 => self.relabel(),
            4 | 5 if self.taps.len() < 3 => self.add_tap(),
            6 => self.delete_tap(),
            7 => self.kill("/tap-helper serve"),
            8 => self.kill("/podtap-agent run"),
            9 => self.delete_pods("helper"),
            10 => self.delete_pods("controller"),
            _ => self.change_tap(),
        }
    }

    fn add_pod(&mut self) -> String {
        let (name, node, app) = (format!("pod-{}", self.next()), *self.random.one(&NODES), *self.random.one(&APPS));
        let pod = self.sandbox.pod(&name, node, app);
        let network = self.sandbox.network(&pod);
        let socket = udp_socket(&network, PORT).expect("the port is free");
        let uid = pod.uid().expect("the API server sets it");
        self.pods.insert(name.clone(), Member { uid, app, address: address(&pod), network, socket });
        format!("pod {name} with app={app} on {node}")
    }

    fn delete_pod(&mut self) -> String {
        let Some(name) = self.random.key(&self.pods) else { return self.add_pod() };
        self.pods.remove(&name);
        self.sandbox.kubectl(&["delete", "pod", &name, "--wait=false"], "").expect("a pod can be deleted");
        format!("pod {name} deleted")
    }

    fn relabel(&mut self) -> String {
        let Some(name) = self.random.key(&self.pods) else { return self.add_pod() };
        let app = *self.random.one(&APPS);
        let label = format!("app={app}");
        self.sandbox.kubectl(&["label", "pod", &name, &label, "--overwrite"], "").expect("it can be labelled");
        self.pods.get_mut(&name).expect("it is there").app = app;
        format!("pod {name} labelled {label}")
    }

    fn add_tap(&mut self) -> String {
        let name = format!("tap-{}", self.next());
        let app = *self.random.one(&APPS);
        self.taps.insert(
            name.clone(),
            Tap {
                app,
                direction: "Both",
                node: "n1",
                interface: String::new(),
                receiver: None,
                expected: BTreeSet::new(),
            },
        );
        self.place(&name);
        self.apply(&name)
    }

    fn change_tap(&mut self) -> String {
        let Some(name) = self.random.key(&self.taps) else { return self.add_tap() };
        if self.random.below(2) == 0 {
            self.place(&name);
        } else {
            self.taps.get_mut(&name).expect("it is there").direction = *self.random.one(&DIRECTIONS);
        }
        self.apply(&name)
    }

    /// Gives the tap another destination.
    fn place(&mut self, name: &str) {
        let (node, number) = (*self.random.one(&NODES), self.next());
        let tap = self.taps.get_mut(name).expect("it is there");
        (tap.node, tap.interface) = (node, format!("soak{number}"));
        (tap.receiver, tap.expected) = (None, BTreeSet::new());
    }

    fn apply(&self, name: &str) -> String {
        let Tap { app, direction, node, interface, .. } = &self.taps[name];
        self.sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: {name}}}\nspec:\n  direction: {direction}\n  \
             targets: {{podSelector: {{matchLabels: {{app: {app}}}}}}}\n  \
             destinations: [{{node: {{name: {node}, interfaceName: {interface}}}}}]\n"
        ));
        format!("tap {name} of app={app}, {direction}, to {interface} on {node}")
    }

    fn delete_tap(&mut self) -> String {
        let Some(name) = self.random.key(&self.taps) else { return self.add_tap() };
        self.taps.remove(&name);
        self.sandbox.kubectl(&["delete", "podtap", &name, "--timeout=60s"], "").expect("a tap can be deleted");
        format!("tap {name} deleted")
    }

    fn kill(&mut self, program: &str) -> String {
        let node = *self.random.one(&NODES);
        // The kubelet waits for longer and longer before it starts a container again.
        let pods: Vec<Pod> = self.sandbox.lab().list(PODTAP_NAMESPACE);
        let on_node =
            pods.iter().filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node));
        let statuses = on_node.flat_map(|pod| pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()));
        if statuses.map(|status| status.restart_count).max().is_none_or(|restarts| restarts > 1) {
            return self.delete_pods("helper");
        }
        let pids = pids(node, program).join(" ");
        // One may have ended meanwhile, by an earlier fault.
        let _ = self.sandbox.lab().on_node(node, &format!("kill -9 {pids}"));
        format!("{program} killed on {node}")
    }

    fn delete_pods(&mut self, component: &str) -> String {
        let label = format!("app.kubernetes.io/component={component}");
        let all = ["-n", PODTAP_NAMESPACE, "delete", "pod", "-l", &label, "--wait=false"];
        self.sandbox.lab().kubectl(&all, "").expect("they can be deleted");
        format!("pods with {label} deleted")
    }

    /// Names of the taps and UIDs of their pods, as the model has them.
    fn requested(&self) -> BTreeSet<(String, String)> {
        let pods_of = |(name, tap): (&String, &Tap)| {
            let (name, app) = (name.clone(), tap.app);
            self.pods.values().filter(move |pod| pod.app == app).map(move |pod| (name.clone(), pod.uid.clone()))
        };
        self.taps.iter().flat_map(pods_of).collect()
    }

    /// The same from the desired state of the nodes.
    fn mirrored(&self, nodes: &[NodeTap]) -> BTreeSet<(String, String)> {
        let senders_of = |node: &NodeTap| {
            let NodeState { taps, senders, .. } = &node.spec.0;
            let ours = taps.iter().filter(|tap| tap.namespace == self.sandbox.namespace());
            let names: BTreeMap<_, _> = ours.map(|tap| (&tap.uid, &tap.name)).collect();
            let names_and_uids = senders
                .iter()
                .filter_map(|sender| Some(((*names.get(&sender.tap)?).clone(), sender.pod.uid.to_string())));
            names_and_uids.collect::<Vec<_>>()
        };
        nodes.iter().flat_map(senders_of).collect()
    }

    /// Waits until every tap is as requested, and sends datagrams in both directions of every pod: each arrives at the taps that mirror
    /// it, and nowhere else.
    fn check(&mut self) {
        for (name, tap) in &mut self.taps {
            let count = self.pods.values().filter(|pod| pod.app == tap.app).count();
            until(&format!("{name} mirrors {count} pods"), TIMEOUT, || {
                let object = self.sandbox.tap(name);
                let status = object.status.unwrap_or_default();
                let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
                let is_current = ready.is_some_and(|c| {
                    c.observed_generation == object.metadata.generation && (c.status == "True" || count == 0)
                });
                let tapped = usize::try_from(status.tapped_pods).ok();
                if is_current && tapped == Some(count) && status.matched_pods == status.tapped_pods {
                    Ok(())
                } else {
                    Err(format!("{} of {}: {ready:?}", status.tapped_pods, status.matched_pods))
                }
            });
            if count > 0 && tap.receiver.is_none() {
                tap.receiver = Some(capture(&namespace_of_node(self.sandbox.lab(), tap.node), &tap.interface));
            }
        }
        // A tap does not wait for nodes that still have to remove something, and while no controller runs its status tells of earlier
        // pods, which may be as many.
        until("every node mirrors these pods and has applied the last change", TIMEOUT, || {
            let nodes: Vec<NodeTap> = self.sandbox.lab().list_all();
            let observed = |node: &NodeTap| node.status.as_ref().and_then(|status| status.observed_generation);
            let is_behind = |node: &&NodeTap| observed(node) != node.metadata.generation;
            let behind: Vec<String> = nodes.iter().filter(is_behind).map(ResourceExt::name_any).collect();
            let (mirrored, requested) = (self.mirrored(&nodes), self.requested());
            let wrong: Vec<_> = mirrored.symmetric_difference(&requested).collect();
            if behind.is_empty() && wrong.is_empty() { Ok(()) } else { Err(format!("{behind:?} {wrong:?}")) }
        });
        let mut sent = Vec::new();
        for pod in self.pods.values() {
            for direction in ["Egress", "Ingress"] {
                self.used += 1;
                let (socket, to) = match direction {
                    "Egress" => (&pod.socket, &self.peer.0),
                    _ => (&self.peer.1, &pod.address),
                };
                socket.send_to(&self.used.to_be_bytes(), (to.as_str(), PORT)).expect("it can be sent");
                sent.push((self.used, pod, direction));
            }
        }
        for (name, tap) in &mut self.taps {
            let due: Vec<u32> =
                sent.iter().filter(|(_, pod, direction)| tap.mirrors(pod, direction)).map(|(n, ..)| *n).collect();
            tap.expected.extend(due);
            let Tap { receiver: Some(receiver), expected, .. } = tap else { continue };
            // All since the first: what arrives too late for one check is seen by the next.
            until(&format!("{name} mirrors what it should"), Duration::from_secs(10), || {
                let seen = numbers(&receiver.so_far(), PORT);
                let missing: Vec<_> = expected.iter().filter(|number| !seen.contains_key(number)).collect();
                let wrong: Vec<_> =
                    seen.iter().filter(|(number, times)| **times != 1 || !expected.contains(number)).collect();
                if missing.is_empty() && wrong.is_empty() {
                    Ok(())
                } else {
                    Err(format!("missing: {missing:?}, too many: {wrong:?}"))
                }
            });
        }
    }
}

#[test]
fn random_changes_and_faults() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    let seed = number("PODTAP_SOAK_SEED").unwrap_or(now.as_secs()).max(1);
    let minutes = number("PODTAP_SOAK_MINUTES").unwrap_or(3);
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("soak");
    let peer = sandbox.pod("peer", "n2", "peer");
    let socket = udp_socket(&sandbox.network(&peer), PORT).expect("the port is free");
    let peer = (address(&peer), socket);
    let mut model =
        Model { sandbox, random: Random(seed), pods: BTreeMap::new(), taps: BTreeMap::new(), peer, used: 0 };
    let start = Instant::now();
    let mut steps = Steps::default();
    println!("PODTAP_SOAK_SEED={seed}");
    while start.elapsed() < Duration::from_secs(60 * minutes) {
        // Several at once, so that they meet.
        for _ in 0..=model.random.below(3) {
            steps.0.push(model.step());
        }
        model.check();
    }
    let count = steps.0.len();
    println!("{count} steps");
    let networks: Vec<PathBuf> = model.pods.values().map(|pod| pod.network.clone()).collect();
    model.sandbox.kubectl(&["delete", "podtaps", "--all", "--timeout=60s"], "").expect("they can be deleted");
    for network in networks.iter().cloned().chain(NODES.map(|node| namespace_of_node(model.sandbox.lab(), node))) {
        let left = traces(&network);
        assert!(left.is_empty(), "{left:?} in {}", network.display());
    }
    assert!(count > 5 * usize::try_from(minutes).expect("a few"), "{count} steps");
}
