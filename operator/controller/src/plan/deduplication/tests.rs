use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::{ResourceExt as _, core::DeserializeGuard};
use podtap_api::NodeTap;
use podtap_model::{Reason, SenderStatus, State};
use serde_json::json;

use super::*;
use crate::{
    fixtures::{OWN_NAMESPACE, World, carry_out, node, node_tap, object, pod, tap, uid},
    plan::{build::build, moves::Moves, resolve::resolve, vni::Vnis},
    validate::tap::validate,
};

/// A controller and its nodes. Each node applies its `NodeTap` only when the test says so.
struct Cluster {
    world: World,
    vnis: Vnis,
    generations: Generations,
    waits: Waits,
}

fn web(name: &str, node: &str, address: &str) -> PodObject {
    let mut pod = pod("shop", name, node);
    pod.status.get_or_insert_default().pod_ip = Some(address.to_owned());
    pod
}

impl Cluster {
    /// A tap with `deduplicate` of a pod on n1 and one on n2.
    fn new() -> Self {
        let mut once = tap("t", json!([{"node": {"name": "n3"}}]));
        once.spec.mirror.options.deduplicate = Some(podtap_model::Deduplicate::default());
        let mut world = World::with(once);
        world.nodes.push(node("n3", &["10.0.0.3"]));
        world.pods = vec![web("web-1", "n1", "10.1.0.1"), web("web-2", "n2", "10.1.0.2")];
        Self { world, vnis: Vnis::default(), generations: Generations::default(), waits: Waits::default() }
    }

    /// The same, with both pods mirrored, and each a peer of the other.
    fn established() -> Self {
        let mut cluster = Self::new();
        cluster.settle();
        assert_eq!(cluster.peers(), ["n1: 10.1.0.1 10.1.0.2", "n2: 10.1.0.1 10.1.0.2"]);
        cluster
    }

    /// Reconciles. Returns the nodes whose `NodeTap` was written.
    fn reconcile(&mut self) -> Vec<String> {
        let snapshot = self.world.snapshot();
        let validated = validate(&snapshot);
        let (taps, vnis) = resolve(&snapshot, &validated, &self.vnis);
        let deduplication = deduplication(&taps, &snapshot, &self.generations, &self.waits);
        let mut plan =
            build(&snapshot, taps, &[].into(), &[].into(), &validated.policy, &deduplication, &Moves::default());
        for name in snapshot.node_taps.keys() {
            plan.nodes.entry(name.clone()).or_default();
        }
        self.generations.observe(&snapshot.node_taps);
        let mut written = Vec::new();
        for (name, spec) in plan.nodes {
            let old = self.world.node_taps.iter().position(|object| object.metadata.name.as_ref() == Some(&name));
            let mut new = match old {
                Some(at) if self.world.node_taps[at].spec.0 == spec => continue,
                Some(at) => self.world.node_taps.remove(at),
                None => node_tap(&name, spec.clone()),
            };
            if old.is_some() {
                new.spec.0 = spec;
                new.metadata.generation = new.metadata.generation.map(|generation| generation + 1);
            }
            let cached = CachedNodeTap::from(DeserializeGuard(Ok(new.clone())));
            self.generations.record(snapshot.node_taps.get(&name).map(std::convert::AsRef::as_ref), &cached);
            self.world.node_taps.push(new);
            written.push(name);
        }
        self.vnis = vnis;
        self.waits = deduplication.waits;
        written
    }

    /// A node applies its `NodeTap`.
    fn applies(&mut self, node: &str) {
        let object = self.object(node);
        *object = carry_out(object.clone());
    }

    /// All nodes apply what is written, until nothing is.
    fn settle(&mut self) {
        for _ in 0..5 {
            if self.reconcile().is_empty() {
                return;
            }
            for node in ["n1", "n2", "n3"] {
                self.applies(node);
            }
        }
        panic!("the cluster does not settle");
    }

    fn object(&mut self, node: &str) -> &mut NodeTap {
        let mut objects = self.world.node_taps.iter_mut();
        objects.find(|object| object.metadata.name.as_deref() == Some(node)).expect("it was written")
    }

    fn sender(&mut self, node: &str) -> &mut SenderStatus {
        &mut self.object(node).status.as_mut().expect("it has reported").senders[0]
    }

    /// The nodes with peers.
    fn peers(&self) -> Vec<String> {
        let peers = |object: &NodeTap| {
            let peers: Vec<String> = object.spec.0.taps.first()?.peers.iter().map(IpAddr::to_string).collect();
            (!peers.is_empty()).then(|| format!("{}: {}", object.name_any(), peers.join(" ")))
        };
        let mut found: Vec<String> = self.world.node_taps.iter().filter_map(peers).collect();
        found.sort_unstable();
        found
    }

    fn senders(&mut self, node: &str) -> Vec<String> {
        self.object(node).spec.0.senders.iter().map(|sender| sender.pod.name.clone()).collect()
    }
}

fn nothing() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_pod_is_a_peer_from_when_its_node_reports_that_it_is_mirrored() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.reconcile(), ["n1", "n2", "n3"]);
    assert_eq!((cluster.peers(), cluster.reconcile()), (nothing(), nothing()));
    cluster.applies("n1");
    cluster.reconcile();
    assert_eq!(cluster.peers(), nothing(), "there is no flow between two tapped pods yet");
    cluster.applies("n2");
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    let both = ["n1: 10.1.0.1 10.1.0.2", "n2: 10.1.0.1 10.1.0.2"];
    assert_eq!(cluster.peers(), both);
    // Neither the write nor the reports that follow it change anything.
    assert_eq!(cluster.reconcile(), nothing());
    for node in ["n2", "n1", "n3"] {
        cluster.applies(node);
        assert_eq!(cluster.reconcile(), nothing());
    }
    // A third pod does not interrupt the others.
    cluster.world.pods.push(web("web-3", "n2", "10.1.0.3"));
    assert_eq!(cluster.reconcile(), ["n2"]);
    assert_eq!(cluster.peers(), both);
    cluster.applies("n2");
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    assert_eq!(cluster.peers()[0], "n1: 10.1.0.1 10.1.0.2 10.1.0.3");
}

#[test]
fn a_pod_that_is_not_mirrored_is_no_peer() {
    for change in [
        |sender: &mut SenderStatus| sender.state = State::Failed,
        |sender: &mut SenderStatus| sender.state = State::Pending,
        |sender: &mut SenderStatus| sender.degraded = vec!["Frames are lost.".to_owned()],
        // The tapped interface is another one.
        |sender: &mut SenderStatus| sender.addresses.clear(),
        |sender: &mut SenderStatus| sender.pod_uid = "another".to_owned(),
    ] {
        let mut cluster = Cluster::established();
        change(cluster.sender("n2"));
        assert_eq!(cluster.reconcile(), ["n1", "n2"]);
        assert_eq!(cluster.peers(), nothing(), "only one is left");
    }
    // Only the IP addresses of the pod itself count.
    let mut cluster = Cluster::established();
    cluster.sender("n2").addresses.push([10, 1, 0, 9].into());
    assert_eq!(cluster.reconcile(), nothing());
    // One that has ended, or is gone.
    let mut cluster = Cluster::established();
    cluster.world.pods.remove(1);
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    assert_eq!(cluster.peers(), nothing());
}

#[test]
fn an_address_of_two_pods_is_no_peer() {
    let mut cluster = Cluster::established();
    let mut other = web("other", "n1", "10.1.0.2");
    other.metadata.namespace = Some("elsewhere".to_owned());
    other.metadata.labels = None;
    let at = cluster.world.pods.len();
    cluster.world.pods.push(other);
    cluster.reconcile();
    assert_eq!(cluster.peers(), nothing());
    cluster.world.pods[at].status.get_or_insert_default().phase = Some("Succeeded".to_owned());
    cluster.reconcile();
    for node in ["n1", "n2"] {
        cluster.applies(node);
    }
    cluster.reconcile();
    assert_eq!(cluster.peers().len(), 2, "a pod that has ended has no address");
}

#[test]
fn peers_have_the_same_options() {
    let mut cluster = Cluster::established();
    cluster.world.taps[0].spec.mirror.options.filter = Some(object(json!({"include": [{"protocol": "TCP"}]})));
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    assert_eq!(cluster.peers(), nothing(), "until both have applied them");
    cluster.applies("n1");
    assert_eq!(cluster.reconcile(), nothing());
    cluster.applies("n2");
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    assert_eq!(cluster.peers().len(), 2);

    // A tap of one direction mirrors each frame once anyway.
    cluster.world.taps[0].spec.mirror.direction = Direction::Egress;
    cluster.settle();
    assert_eq!(cluster.peers(), nothing());
}

#[test]
fn another_destination_does_not_interrupt_deduplication() {
    let mut cluster = Cluster::established();
    cluster.world.taps[0].spec.mirror.destinations =
        tap("t", json!([{"node": {"name": "n2"}}])).spec.mirror.destinations;
    assert_eq!(cluster.reconcile(), ["n1", "n2", "n3"]);
    assert_eq!(cluster.peers().len(), 2);
    cluster.applies("n1");
    assert_eq!(cluster.reconcile(), nothing());
}

#[test]
fn what_a_node_reported_does_not_count_for_long_without_its_helper() {
    let mut cluster = Cluster::established();
    let helper = |node: &str, ready: &str| -> PodObject {
        object(json!({
            "metadata": {
                "namespace": OWN_NAMESPACE, "name": format!("helper-{node}"), "uid": format!("helper-{node}"),
                "labels": {"app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": "helper"},
            },
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        }))
    };
    cluster.world.pods.extend([helper("n1", "True"), helper("n2", "True"), helper("n3", "True")]);
    assert_eq!((cluster.reconcile(), cluster.waits.clone()), (nothing(), Waits::default()));
    let helper_of_n2 = cluster.world.pods.len() - 2;
    // A restart takes less.
    cluster.world.pods[helper_of_n2] = helper("n2", "False");
    assert_eq!(cluster.reconcile(), nothing());
    cluster.world.seconds = 14;
    assert_eq!(cluster.reconcile(), nothing());
    cluster.world.seconds = 15;
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    assert_eq!(cluster.peers(), nothing());
    cluster.world.seconds = 20;
    cluster.world.pods[helper_of_n2] = helper("n2", "True");
    cluster.settle();
    assert_eq!(cluster.peers().len(), 2);
}

/// The second pod leaves the selection of the tap, and runs on.
fn leave(cluster: &mut Cluster) {
    cluster.world.pods[1].metadata.labels = None;
}

#[test]
fn a_sender_stays_until_nobody_leaves_flows_to_it() {
    let mut cluster = Cluster::established();
    leave(&mut cluster);
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    assert_eq!((cluster.peers(), cluster.senders("n2")), (nothing(), vec!["web-2".to_owned()]));
    cluster.applies("n2");
    assert_eq!((cluster.reconcile(), cluster.senders("n2")), (nothing(), vec!["web-2".to_owned()]), "n1 has not yet");
    cluster.applies("n1");
    assert_eq!(cluster.reconcile(), ["n2"]);
    assert!(cluster.object("n2").spec.0.senders.is_empty() && cluster.waits.leaving.is_empty());
    cluster.applies("n2");
    assert_eq!(cluster.reconcile(), nothing());
}

#[test]
fn a_node_that_does_not_answer_keeps_no_sender() {
    let mut cluster = Cluster::established();
    leave(&mut cluster);
    cluster.reconcile();
    cluster.world.seconds = 4;
    assert_eq!(cluster.reconcile(), nothing());
    cluster.world.seconds = 5;
    assert_eq!(cluster.reconcile(), ["n2"]);
    assert_eq!(cluster.senders("n2"), nothing());
}

#[test]
fn opting_out_takes_effect_at_once() {
    let opt_out = json!({"podtap.dev/exclude": "true"});
    let mut of_pod = Cluster::established();
    of_pod.world.pods[1].metadata.annotations = Some(object(opt_out.clone()));
    let mut of_node = Cluster::established();
    of_node.world.nodes[1].metadata.annotations = Some(object(opt_out.clone()));
    let mut of_namespace = Cluster::established();
    let shop = json!({"metadata": {"name": "shop", "annotations": opt_out}});
    of_namespace.world.namespaces = vec![object(shop)];
    for mut cluster in [of_pod, of_node, of_namespace] {
        let snapshot = cluster.world.snapshot();
        let validated = validate(&snapshot);
        let (taps, _) = resolve(&snapshot, &validated, &cluster.vnis);
        let found = deduplication(&taps, &snapshot, &cluster.generations, &cluster.waits);
        assert_eq!(found.leaving_of(&uid("tap-t")).count(), 0);
        cluster.reconcile();
        assert_eq!(cluster.peers(), nothing());
    }
}

#[test]
fn taps_without_deduplication_wait_for_nothing() {
    let mut cluster = Cluster::established();
    cluster.world.taps[0].spec.mirror.options.deduplicate = None;
    cluster.settle();
    assert_eq!((cluster.peers(), cluster.waits.clone()), (nothing(), Waits::default()));
    leave(&mut cluster);
    assert_eq!(cluster.reconcile(), ["n2"]);
    assert_eq!(cluster.sender("n1").reason, Reason::AsExpected);
}
