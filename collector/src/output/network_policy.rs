//! The map as `NetworkPolicy` objects: one for each workload that was called, which allows what was seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, Write},
};

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
    jiff,
};
use podtap_flow::{
    Timestamp,
    map::{Party, Traffic},
    named::protocol_name,
    names::Workload,
    packet,
};

use crate::shared::{PodLabels, View};

/// Labels that a workload's next pods will not have: those of one pod, of one generation, or of one release.
const PASSING: [&str; 11] = [
    "app.kubernetes.io/version",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "helm.sh/chart",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];
/// Every namespace has this label with its name since Kubernetes 1.21.
const NAMESPACE: &str = "kubernetes.io/metadata.name";

type Labels = BTreeMap<String, String>;
/// Protocol and port.
type Ports = BTreeSet<(u8, u16)>;

const REVIEW: &str = "\
# Each policy allows its pods to receive what was seen, and denies everything else: calls that are rarer than the time
# of observation, what was not mirrored, and, unless the network plugin exempts a pod's own node, the kubelet's probes.
# Review each one, and try it where an outage does no harm, before you apply it. What pods send is not restricted.
";

/// Writes YAML documents. Comments tell what they are based on, and what they leave out.
pub fn write(out: &mut impl Write, view: &View) -> io::Result<()> {
    let mut servers: BTreeMap<&Party, Vec<(&Party, &Traffic)>> = BTreeMap::new();
    for (edge, traffic) in view.map.edges() {
        servers.entry(&edge.server).or_default().push((&edge.client, traffic));
    }
    let seen = view.map.edges().map(|(_, traffic)| traffic);
    writeln!(out, "# NetworkPolicies of mirrored traffic{}.", time_of(seen))?;
    out.write_all(REVIEW.as_bytes())?;
    let selectors = Selectors::new(view);
    let mut names = BTreeSet::new();
    for (server, calls) in servers {
        match policy(server, &calls, &selectors) {
            Ok(Policy { mut policy, notes }) => {
                make_unique(&mut policy.metadata, &mut names);
                writeln!(out, "---\n# {}{}", describe(server), time_of(calls.iter().map(|(_, traffic)| *traffic)))?;
                for note in notes {
                    writeln!(out, "# {note}")?;
                }
                let text = serde_saphyr::to_string(&policy).map_err(io::Error::other)?;
                writeln!(out, "{}", text.trim_end())?;
            }
            Err(Some(reason)) => writeln!(out, "# No policy for {}: {reason}.", describe(server))?,
            Err(None) => {}
        }
    }
    Ok(())
}

/// When it was seen first and last.
fn time_of<'a>(traffic: impl Iterator<Item = &'a Traffic> + Clone) -> String {
    let time = |at: Timestamp| {
        let milliseconds = i64::try_from(at.milliseconds()).ok()?;
        jiff::Timestamp::from_millisecond(milliseconds).ok().map(|at| at.to_string())
    };
    let first = traffic.clone().map(|traffic| traffic.first).min().and_then(time);
    let last = traffic.map(|traffic| traffic.last).max().and_then(time);
    match first.zip(last) {
        Some((first, last)) => format!(", seen from {first} to {last}"),
        None => ", of which nothing was seen".to_owned(),
    }
}

/// In a comment: whatever the name is, it stays in its line.
fn describe(party: &Party) -> String {
    match party {
        Party::Workload { namespace, workload } => {
            format!("{} {:?} in namespace {namespace:?}", workload.kind.escape_debug(), workload.name)
        }
        Party::Service { namespace, name } => format!("service {name:?} in namespace {namespace:?}"),
        Party::Node { name } => format!("node {name:?}"),
        Party::External { name: Some(name) } => format!("{name:?}, outside of the cluster"),
        Party::External { name: None } => "addresses outside of the cluster".to_owned(),
        Party::AnotherNamespace => "namespaces that you did not ask for".to_owned(),
        Party::Other => "what found no room in the map".to_owned(),
    }
}

struct Policy {
    policy: NetworkPolicy,
    /// What it does not say.
    notes: Vec<String>,
}

/// `Err`: why there is none; `None` for what a policy cannot protect.
fn policy(server: &Party, calls: &[(&Party, &Traffic)], selectors: &Selectors<'_>) -> Result<Policy, Option<String>> {
    let (namespace, workload) = match server {
        Party::Workload { namespace, workload } => (namespace, workload),
        Party::Service { .. } => return Err(Some("it is not known which workload is behind it".to_owned())),
        Party::Node { .. } | Party::External { .. } | Party::AnotherNamespace | Party::Other => return Err(None),
    };
    let (labels, others) = selectors.of(namespace, workload)?;
    if !others.is_empty() {
        return Err(Some(format!("its labels are also those of {}", others.join(", "))));
    }
    let mut notes = Vec::new();
    // Clients with the same ports share a rule.
    let mut rules: BTreeMap<Ports, Vec<NetworkPolicyPeer>> = BTreeMap::new();
    for (client, traffic) in calls {
        let (ports, unknown) = ports(traffic);
        let from = describe(client);
        notes.extend(unknown.into_iter().map(|what| format!("Denied, but seen: {what} from {from}.")));
        if ports.is_empty() {
            continue;
        }
        match peers(client, selectors) {
            Ok((peers, note)) => {
                rules.entry(ports).or_default().extend(peers);
                notes.extend(note);
            }
            Err(reason) => notes.push(format!("Denied, but seen: {} from {from}: {reason}.", list(&ports))),
        }
    }
    if rules.is_empty() {
        return Err(Some(format!("it would deny everything. {}", notes.join(" ").trim_end_matches('.'))));
    }
    let rules = rules.into_iter().map(|(ports, from)| NetworkPolicyIngressRule {
        from: Some(from),
        ports: Some(ports.into_iter().map(port).collect()),
    });
    let spec = NetworkPolicySpec {
        pod_selector: Some(LabelSelector { match_labels: Some(labels), match_expressions: None }),
        policy_types: Some(vec!["Ingress".to_owned()]),
        ingress: Some(rules.collect()),
        egress: None,
    };
    let name = format!("{}-{}", workload.name, workload.kind);
    let metadata = ObjectMeta { name: Some(name), namespace: Some(namespace.clone()), ..ObjectMeta::default() };
    Ok(Policy { policy: NetworkPolicy { metadata, spec: Some(spec) }, notes })
}

/// By which labels pods are selected, and which workloads have them.
struct Selectors<'a> {
    view: &'a View,
    /// The workloads of a namespace that have a pod with a label.
    with_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Workload>>,
}

impl<'a> Selectors<'a> {
    fn new(view: &'a View) -> Self {
        let mut with_label: HashMap<_, Vec<&Workload>> = HashMap::new();
        for (workload, labels) in &view.labels {
            let (namespace, workload) = &**workload;
            for (key, value) in labels.sets.keys().flat_map(|set| set.iter()) {
                let workloads = with_label.entry((namespace.as_str(), key.as_str(), value.as_str())).or_default();
                if workloads.last() != Some(&workload) {
                    workloads.push(workload);
                }
            }
        }
        Self { view, with_label }
    }

    /// Labels by which the pods of a workload can be selected, and other workloads of its namespace that have them, too.
    fn of(&self, namespace: &str, workload: &Workload) -> Result<(Labels, Vec<String>), Option<String>> {
        let key = (namespace.to_owned(), workload.clone());
        let Some(PodLabels { sets }) = self.view.labels.get(&key).map(|labels| &**labels) else {
            return Err(Some("the labels of its pods are not known".to_owned()));
        };
        let mut sets = sets.keys();
        let mut common: Labels = sets.next().map(|set| (**set).clone()).unwrap_or_default();
        common.retain(|key, _| !PASSING.contains(&key.as_str()));
        for other in sets {
            common.retain(|key, value| other.get(key) == Some(value));
        }
        if common.is_empty() {
            return Err(Some("its pods have no label in common that will stay".to_owned()));
        }
        let has_all = |set: &Labels| common.iter().all(|(key, value)| set.get(key) == Some(value));
        // Who has all of them has the rarest one.
        let candidates = common.iter().filter_map(|(key, value)| self.with_label.get(&(namespace, key, value)));
        let rarest = candidates.min_by_key(|workloads| workloads.len()).into_iter().flatten();
        let others = rarest.filter(|other| {
            let labels = self.view.labels.get(&(namespace.to_owned(), (**other).clone()));
            **other != workload && labels.is_some_and(|labels| labels.sets.keys().any(|set| has_all(set)))
        });
        let mut others: Vec<String> =
            others.map(|other| format!("{} {:?}", other.kind.escape_debug(), other.name)).collect();
        others.sort();
        Ok((common, others))
    }
}

/// What a policy can allow of this traffic, and what it cannot.
fn ports(traffic: &Traffic) -> (Ports, Vec<String>) {
    let has_ports = |protocol: u8| matches!(protocol, packet::TCP | packet::UDP | packet::SCTP);
    let (ports, others): (Ports, Ports) = traffic.pod_ports.keys().partition(|(protocol, _)| has_ports(*protocol));
    let protocols: BTreeSet<u8> = others.into_iter().map(|(protocol, _)| protocol).collect();
    let mut unknown: Vec<String> = protocols.into_iter().map(protocol_name).collect();
    let known: u64 = traffic.pod_ports.values().chain(traffic.failed.values()).sum();
    let flows = traffic.connections + traffic.preexisting;
    if flows > known {
        unknown.push(format!("{} flows to ports that are not known", flows - known));
    } else if ports.is_empty() && traffic.failed.is_empty() && unknown.is_empty() {
        unknown.push("flows from before the map was forgotten, to ports that are not known".to_owned());
    }
    (ports, unknown)
}

fn list(ports: &Ports) -> String {
    let ports: Vec<String> =
        ports.iter().map(|(protocol, port)| format!("{} {port}", protocol_name(*protocol))).collect();
    ports.join(", ")
}

fn port((protocol, port): (u8, u16)) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol_name(protocol)),
        port: Some(IntOrString::Int(port.into())),
        end_port: None,
    }
}

/// A client as a policy names it, and what is to be said of that.
fn peers(client: &Party, selectors: &Selectors<'_>) -> Result<(Vec<NetworkPolicyPeer>, Option<String>), String> {
    let block = |cidr: String| NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr, except: None }),
        namespace_selector: None,
        pod_selector: None,
    };
    match client {
        Party::Workload { namespace, workload } => {
            let (labels, others) = selectors.of(namespace, workload).map_err(Option::unwrap_or_default)?;
            let select = |labels| Some(LabelSelector { match_labels: Some(labels), match_expressions: None });
            let peer = NetworkPolicyPeer {
                ip_block: None,
                namespace_selector: select([(NAMESPACE.to_owned(), namespace.clone())].into()),
                pod_selector: select(labels),
            };
            let also = (!others.is_empty()).then(|| {
                format!("Allowed with {}, which has no labels of its own: {}.", describe(client), others.join(", "))
            });
            Ok((vec![peer], also))
        }
        Party::Node { name } => match selectors.view.nodes.get(name).filter(|addresses| !addresses.is_empty()) {
            Some(addresses) => {
                let blocks =
                    addresses.iter().map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }));
                Ok((blocks.map(block).collect(), None))
            }
            None => Err("its addresses are not known".to_owned()),
        },
        Party::External { name: Some(name) } => {
            let networks = selectors.view.networks.iter().filter(|(_, label)| label == name);
            let blocks: Vec<_> = networks.map(|(network, _)| block(network.clone())).collect();
            if blocks.is_empty() { Err("its addresses are not known".to_owned()) } else { Ok((blocks, None)) }
        }
        Party::AnotherNamespace => Err("ask for their namespaces, too".to_owned()),
        Party::Service { .. } | Party::External { name: None } | Party::Other => {
            Err("their addresses are not kept".to_owned())
        }
    }
}

/// A name that the API server takes, and that no other policy of the namespace has.
fn make_unique(metadata: &mut ObjectMeta, names: &mut BTreeSet<(String, String)>) {
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let name = metadata.name.take().unwrap_or_default().to_lowercase();
    let name: String =
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).take(200).collect();
    let name = name.trim_matches('-');
    let name = if name.is_empty() { "workload" } else { name };
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let free =
        [name.to_owned()].into_iter().chain(numbered).find(|name| names.insert((namespace.clone(), name.clone())));
    metadata.name = free;
}

#[cfg(test)]
mod tests {
    use podtap_flow::{
        Failure,
        map::{Bounds, Edge, Map},
        names::{Names, Objects},
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        newest::Newest,
        shared::{State, Status},
    };

    fn party(value: &Value) -> Party {
        serde_json::from_value(value.clone()).expect("a party")
    }

    fn deployment(namespace: &str, name: &str) -> Value {
        json!({"workload": {"namespace": namespace, "workload": {"kind": "Deployment", "name": name}}})
    }

    fn objects() -> Value {
        let pod = |namespace: &str, workload: &str, uid: &str, labels: Value| {
            json!({"namespace": namespace, "name": uid, "uid": uid, "addresses": [], "labels": labels,
                "workload": {"kind": "Deployment", "name": workload}})
        };
        json!({
            "pods": [
                pod("shop", "cart", "cart-1", json!({"app": "cart", "pod-template-hash": "1", "on": "true", "version": "1"})),
                pod("shop", "cart", "cart-2", json!({"app": "cart", "pod-template-hash": "2", "on": "true", "version": "2"})),
                pod("front", "web", "web-1", json!({"app": "web"})),
                pod("front", "twin-a", "twin-a-1", json!({"app": "twin"})),
                pod("front", "twin-b", "twin-b-1", json!({"app": "twin", "more": "1"})),
                pod("front", "bare", "bare-1", json!({"pod-template-hash": "1"})),
            ],
            "nodes": [{"name": "n1", "addresses": ["192.168.0.1", "fd00::1"]}],
            "networks": [["192.0.2.0/24", "office"], ["198.51.100.0/24", "office"]],
        })
    }

    /// Client, server, and ports at the pod.
    type Call<'a> = (Value, Value, &'a [(u8, u16)]);

    /// The text of a map with these calls, each with its ports at the pod.
    fn text(calls: &[Call<'_>]) -> String {
        let objects: Objects = serde_json::from_value(objects()).expect("objects");
        let mut map = Map::new(Bounds::default());
        for (client, server, ports) in calls {
            let traffic = Traffic {
                first: Timestamp::from_seconds(1_700_000_000),
                last: Timestamp::from_seconds(1_700_003_600),
                connections: ports.len() as u64,
                pod_ports: ports.iter().map(|port| (*port, 1)).collect(),
                ..Traffic::default()
            };
            map.restore(Edge { client: party(client), server: party(server) }, traffic);
        }
        text_of(&State {
            names: Names::new(objects),
            map,
            pods: None,
            newest: Newest::default(),
            status: Status::default(),
        })
    }

    fn text_of(from: &State) -> String {
        let mut text = Vec::new();
        write(&mut text, &View::new(from)).expect("memory");
        String::from_utf8(text).expect("text")
    }

    fn policies(text: &str) -> Vec<NetworkPolicy> {
        let documents = text.split("\n---\n").skip(1);
        documents
            .map(|document| serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}")))
            .collect()
    }

    #[test]
    fn a_policy_allows_what_was_seen() {
        let cart = || deployment("shop", "cart");
        let text = text(&[
            (deployment("front", "web"), cart(), &[(6, 8080), (17, 53)]),
            (json!({"node": {"name": "n1"}}), cart(), &[(6, 8080), (17, 53)]),
            (json!({"external": {"name": "office"}}), cart(), &[(6, 443)]),
        ]);
        assert!(text.contains("seen from 2023-11-14T22:13:20Z to 2023-11-14T23:13:20Z"), "{text}");
        assert!(text.contains("Review each one"), "{text}");
        let found = policies(&text);
        let expected = json!([{
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "cart-deployment", "namespace": "shop"},
            "spec": {
                // Neither of one generation, nor of one of its pods.
                "podSelector": {"matchLabels": {"app": "cart", "on": "true"}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "198.51.100.0/24"}}],
                     "ports": [{"protocol": "TCP", "port": 443}]},
                    {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "front"}},
                               "podSelector": {"matchLabels": {"app": "web"}}},
                              {"ipBlock": {"cidr": "192.168.0.1/32"}}, {"ipBlock": {"cidr": "fd00::1/128"}}],
                     "ports": [{"protocol": "TCP", "port": 8080}, {"protocol": "UDP", "port": 53}]},
                ],
            },
        }]);
        assert_eq!(serde_json::to_value(found).expect("JSON"), expected, "{text}");
    }

    #[test]
    fn what_is_not_known_is_left_out_and_said() {
        let cart = || deployment("shop", "cart");
        let text = text(&[
            (deployment("front", "web"), cart(), &[(6, 80), (1, 0)]),
            (deployment("front", "gone"), cart(), &[(6, 81)]),
            (json!({"external": {"name": null}}), cart(), &[(6, 82)]),
            (json!({"external": {"name": "evil\nkind: Secret"}}), cart(), &[(6, 83)]),
            (json!({"node": {"name": "n2"}}), cart(), &[(6, 84)]),
            (deployment("front", "twin-a"), cart(), &[(6, 85)]),
            (cart(), deployment("front", "twin-a"), &[(6, 80)]),
            (cart(), deployment("front", "twin-b"), &[(6, 80)]),
            (cart(), deployment("front", "bare"), &[(6, 80)]),
            (cart(), json!({"service": {"namespace": "default", "name": "kubernetes"}}), &[(6, 443)]),
            (cart(), json!({"external": {"name": "example.com"}}), &[(6, 443)]),
            (json!("other"), deployment("front", "web"), &[(6, 80)]),
        ]);
        for line in [
            "# Denied, but seen: ICMP from Deployment \"web\" in namespace \"front\".",
            "# Denied, but seen: TCP 81 from Deployment \"gone\" in namespace \"front\": the labels of its pods are not known.",
            "# Denied, but seen: TCP 82 from addresses outside of the cluster: their addresses are not kept.",
            "# Denied, but seen: TCP 83 from \"evil\\nkind: Secret\", outside of the cluster: its addresses are not known.",
            "# Denied, but seen: TCP 84 from node \"n2\": its addresses are not known.",
            "# Allowed with Deployment \"twin-a\" in namespace \"front\", which has no labels of its own: Deployment \"twin-b\".",
            "# No policy for Deployment \"twin-a\" in namespace \"front\": its labels are also those of Deployment \"twin-b\".",
            "# No policy for Deployment \"bare\" in namespace \"front\": its pods have no label in common that will stay.",
            "# No policy for service \"kubernetes\" in namespace \"default\": it is not known which workload is behind it.",
            "# No policy for Deployment \"web\" in namespace \"front\": it would deny everything. Denied, but seen: \
             TCP 80 from what found no room in the map: their addresses are not kept.",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("example.com"), "{text}");
        let names: Vec<_> = policies(&text).into_iter().filter_map(|policy| policy.metadata.name).collect();
        assert_eq!(names, ["twin-b-deployment", "cart-deployment"]);
    }

    #[test]
    fn ports_that_are_not_known_are_counted_and_failures_are_not_allowed() {
        let traffic = Traffic {
            connections: 10,
            preexisting: 2,
            failed: [(Failure::Refused, 3)].into(),
            ports: [((6, 80), 12)].into(),
            pod_ports: [((6, 8080), 4)].into(),
            ..Traffic::default()
        };
        assert_eq!(ports(&traffic), ([(6, 8080)].into(), vec!["5 flows to ports that are not known".to_owned()]));
        let scanned = Traffic {
            connections: 3,
            failed: [(Failure::Refused, 3)].into(),
            ports: [((6, 80), 1), ((6, 81), 1), ((6, 82), 1)].into(),
            ..Traffic::default()
        };
        assert_eq!(ports(&scanned), (Ports::new(), Vec::new()));
    }

    #[test]
    fn names_are_valid_and_unique() {
        let mut names = BTreeSet::new();
        let mut name = |name: &str| {
            let mut metadata =
                ObjectMeta { name: Some(name.into()), namespace: Some("shop".into()), ..ObjectMeta::default() };
            make_unique(&mut metadata, &mut names);
            metadata.name.expect("a name")
        };
        assert_eq!(
            ["A_b-Pod", "a.b-pod", "a-b-pod", "..."].map(&mut name),
            ["a-b-pod", "a-b-pod-2", "a-b-pod-3", "workload"]
        );
        assert_eq!(name(&"x".repeat(300)).len(), 200);
    }
}
