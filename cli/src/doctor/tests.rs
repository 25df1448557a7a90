//! One fault each, and what is told of it.

use serde_json::{Value, json};

use super::{
    fixtures::{healthy, object, policy, tap},
    report::Level,
    *,
};
use crate::tap::Tap;

/// The findings that are not as they should be.
fn faults(change: impl FnOnce(&mut Snapshot)) -> Vec<Finding> {
    let mut snapshot = healthy();
    change(&mut snapshot);
    check(&snapshot, false).into_iter().filter(|finding| finding.level != Level::Ok).collect()
}

/// The only finding.
#[track_caller]
fn fault(level: Level, group: Group, words: &str, change: impl FnOnce(&mut Snapshot)) -> Finding {
    let mut findings = faults(change);
    assert_eq!(findings.len(), 1, "{words}: {findings:#?}");
    let finding = findings.remove(0);
    assert_eq!((finding.level, finding.group), (level, group), "{finding:?}");
    assert!(finding.message.contains(words), "expected “{words}” in {finding:?}");
    finding
}

fn edit<K: serde::Serialize + serde::de::DeserializeOwned>(found: &mut K, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::to_value(&*found).expect("it can be written");
    change(&mut value);
    *found = object(value);
}

/// The item of this index of what the user may read.
fn nth<T>(list: &mut snapshot::Read<Vec<T>>, index: usize) -> &mut T {
    &mut list.as_mut().expect("it is known")[index]
}

fn some<T>(read: &mut snapshot::Read<Option<T>>) -> &mut T {
    read.as_mut().ok().and_then(Option::as_mut).expect("it is known")
}

#[test]
fn nothing_is_wrong_with_a_healthy_installation() {
    assert_eq!(faults(|_| {}), []);
    let report = Report::new(check(&healthy(), false));
    assert_eq!(report.exit(), Exit::Done);
    let text = report.text(true);
    assert!(text.contains("probes of taps arrive, small and of full size, on 1 path: n1 to n2"), "{text}");
}

#[test]
fn kinds_and_versions() {
    use Group::Cluster;
    fault(Level::Error, Cluster, "PodTap needs 1.32", |snapshot| snapshot.kubernetes = "1.31+".to_owned());
    fault(Level::Error, Cluster, "does not serve the kind NodeTap", |snapshot| {
        snapshot.missing_kinds = vec!["NodeTap".to_owned()];
    });
    fault(Level::Error, Cluster, "serves podtap.dev/v2, and this program uses v1alpha1", |snapshot| {
        snapshot.served = ["v2".to_owned()].into();
    });
    let of = |older: bool| {
        move |snapshot: &mut Snapshot| {
            snapshot.definitions = Ok(podtap_api::definitions().map(|(_, definition)| definition).to_vec());
            edit(nth(&mut snapshot.definitions, 0), |definition| {
                let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
                let fields = schema["spec"]["properties"].as_object_mut().expect("it has fields");
                if older {
                    fields.remove("suspend");
                } else {
                    fields.insert("future".to_owned(), json!({"type": "string"}));
                }
            });
        }
    };
    fault(
        Level::Warning,
        Cluster,
        "PodTap in the cluster is older than this program: it has no spec.suspend",
        of(true),
    );
    fault(Level::Warning, Cluster, "newer than this program, which does not know spec.future", of(false));
    fault(Level::Error, Cluster, "cannot read NodeTap n1: unknown variant", |snapshot| {
        snapshot.undecodable.push("NodeTap n1: unknown variant".to_owned());
    });
    fault(Level::Warning, Cluster, "the controller is of version 9.9.9", |snapshot| {
        edit(some(&mut snapshot.controller), |found| {
            found["metadata"]["labels"] = json!({"app.kubernetes.io/version": "9.9.9"});
        });
    });
    fault(Level::Warning, Cluster, "another image than the controller: podtap:old", |snapshot| {
        edit(nth(&mut snapshot.pods, 1), |pod| pod["spec"]["containers"][0]["image"] = json!("podtap:old"));
    });
}

#[test]
fn an_absent_installation_is_named_once_for_each_part() {
    let findings = faults(|snapshot| {
        snapshot.served.clear();
        snapshot.controller = Ok(None);
        snapshot.pods = Ok(Vec::new());
    });
    let messages: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "the cluster does not serve the kinds of podtap.dev: install PodTap",
            "there is no controller in the namespace podtap-system"
        ]
    );
}

#[test]
fn the_control_plane() {
    use Group::ControlPlane;
    let restricted = fault(Level::Error, ControlPlane, "enforces restricted, which rejects helper pods", |snapshot| {
        edit(some(&mut snapshot.namespace), |found| {
            found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!("restricted");
        });
    });
    assert!(restricted.hints[0].contains("enforce=privileged"), "{restricted:?}");
    let scaled = fault(Level::Error, ControlPlane, "0 of 0 pods of the controller are ready", |snapshot| {
        edit(some(&mut snapshot.controller), |found| {
            found["spec"]["replicas"] = json!(0);
            found["status"] = json!({});
        });
    });
    assert!(scaled.hints[0].contains("scale deployment"), "{scaled:?}");
    let rejected = fault(Level::Error, ControlPlane, "0 of 1 pods", |snapshot| {
        edit(some(&mut snapshot.controller), |found| {
            found["status"] =
                json!({"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]});
        });
    });
    assert!(rejected.hints[0].ends_with("exceeded quota"), "{rejected:?}");
    fault(Level::Warning, ControlPlane, "1 of 2 pods", |snapshot| {
        edit(some(&mut snapshot.controller), |found| found["spec"]["replicas"] = json!(2));
    });
    fault(Level::Error, ControlPlane, "held by the pod gone, which is not ready", |snapshot| {
        edit(some(&mut snapshot.lease), |lease| lease["spec"]["holderIdentity"] = json!("gone"));
    });
    fault(Level::Error, ControlPlane, "has no holder", |snapshot| snapshot.lease = Ok(None));
    fault(Level::Error, ControlPlane, "suspendAll: true", |snapshot| {
        let mut policy = policy();
        policy.spec.suspend_all = true;
        snapshot.policy = Ok(Some(policy));
    });
}

#[test]
fn an_image_that_cannot_be_pulled_is_named() {
    let waiting = |pod: &mut Value| {
        pod["status"] = json!({
            "phase": "Pending",
            "containerStatuses": [{
                "name": "main", "image": "registry/podtap:1", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
            }],
        });
    };
    let words = "ImagePullBackOff: Back-off pulling image (registry/podtap:1)";
    let helper = fault(Level::Error, Group::Nodes, words, |snapshot| edit(nth(&mut snapshot.pods, 2), waiting));
    assert!(helper.message.contains("the node n2"), "{helper:?}");
    let findings = faults(|snapshot| edit(nth(&mut snapshot.pods, 0), waiting));
    assert!(findings.iter().any(|finding| finding.message.contains(words)), "{findings:?}");
}

#[test]
fn helper_pods_and_kernels() {
    use Group::Nodes;
    fault(Level::Error, Nodes, "the node n2 has no helper pod", |snapshot| {
        snapshot.pods.as_mut().expect("they are known").pop();
    });
    fault(Level::Error, Nodes, "the node n1 does not work: it is not ready", |snapshot| {
        edit(nth(&mut snapshot.pods, 1), |pod| pod["status"]["conditions"] = json!([]));
    });
    fault(Level::Error, Nodes, "n1: the kernel of the node cannot load eBPF programs", |snapshot| {
        edit(nth(&mut snapshot.node_taps, 0), |node| node["status"]["features"]["ebpf"] = json!(false));
    });
    let module = fault(Level::Error, Nodes, "n1: 1 sender with KernelFeatureMissing: it lacks VXLAN", |snapshot| {
        edit(nth(&mut snapshot.node_taps, 0), |node| {
            let sender = &mut node["status"]["senders"][0];
            (sender["state"], sender["reason"]) = (json!("Failed"), json!("KernelFeatureMissing"));
            sender["message"] = json!("it lacks VXLAN");
        });
    });
    assert!(module.hints[0].starts_with("Load the modules"), "{module:?}");
    fault(Level::Warning, Nodes, "n1: the node has not applied the latest changes yet", |snapshot| {
        nth(&mut snapshot.node_taps, 0).metadata.generation = Some(2);
    });
}

#[test]
fn machines_that_cannot_run_helper_pods() {
    use Group::Nodes;
    let info = |field: &'static str, value: &'static str| {
        move |snapshot: &mut Snapshot| {
            edit(nth(&mut snapshot.nodes, 0), |node| node["status"]["nodeInfo"][field] = json!(value));
        }
    };
    fault(Level::Error, Nodes, "node n1: their kernels are older than 5.11", info("kernelVersion", "5.4.0"));
    fault(Level::Warning, Nodes, "older than 6.1", info("kernelVersion", "5.15.0-91-generic"));
    fault(Level::Warning, Nodes, "not Linux", info("operatingSystem", "windows"));
    fault(Level::Warning, Nodes, "not of the architecture amd64", info("architecture", "arm64"));
    let edited = |change: fn(&mut Value)| move |snapshot: &mut Snapshot| edit(nth(&mut snapshot.nodes, 0), change);
    fault(
        Level::Warning,
        Nodes,
        "Fargate",
        edited(|node| node["metadata"]["labels"] = json!({"eks.amazonaws.com/compute-type": "fargate"})),
    );
    fault(Level::Error, Nodes, "Autopilot", edited(|node| node["metadata"]["name"] = json!("gk3-pool-1")));
    fault(
        Level::Error,
        Nodes,
        "not Ready",
        edited(|node| node["status"]["conditions"][0]["status"] = json!("Unknown")),
    );
}

#[test]
fn tunnels_of_the_cni_that_take_a_port_of_podtap() {
    let map = |key: &str, value: &str| Some(object(json!({"data": {key: value}})));
    fault(Level::Error, Group::Nodes, "the tunnels of Cilium use UDP 14789", |snapshot| {
        snapshot.cni.cilium = map("tunnel-port", "14789");
    });
    let flannel = |port: u16| map("net-conf.json", &json!({"Backend": {"Type": "vxlan", "Port": port}}).to_string());
    fault(Level::Error, Group::Nodes, "the tunnels of Flannel use UDP 14788", |snapshot| {
        snapshot.cni.flannel = flannel(14788);
    });
    fault(Level::Error, Group::Nodes, "the tunnels of Calico use UDP 4789", |snapshot| {
        snapshot.cni.calico = Some(json!({"spec": {}}));
        let mut policy = policy();
        policy.spec.receiver_port = 4789;
        snapshot.policy = Ok(Some(policy));
    });
    fault(Level::Error, Group::Nodes, "the tunnels of Flannel use UDP 8472", |snapshot| {
        snapshot.nodes.as_mut().expect("they are known")[0]
            .annotations_mut()
            .insert("flannel.alpha.coreos.com/backend-type".to_owned(), "vxlan".to_owned());
        let mut policy = policy();
        policy.spec.receiver_port = 8472;
        snapshot.policy = Ok(Some(policy));
    });
    assert_eq!(faults(|snapshot| snapshot.cni.flannel = flannel(0)), []);
    assert_eq!(faults(|snapshot| snapshot.cni.cilium = map("routing-mode", "native")), []);
}

#[test]
fn networks_that_do_not_deliver() {
    let lost = |reason: &'static str, message: &'static str| {
        move |snapshot: &mut Snapshot| snapshot.taps = Ok(vec![tap("False", "Delivering", reason, message)])
    };
    let blocked = fault(
        Level::Error,
        Group::Network,
        "n2 gets nothing (PodTap shop/web)",
        lost("PortBlocked", "n2 gets nothing"),
    );
    for words in ["aws ec2", "gcloud", "az network", "ufw", "firewall-cmd"] {
        assert!(blocked.hints.iter().any(|line| line.contains(words)), "{words}: {blocked:?}");
    }
    let small = fault(Level::Error, Group::Network, "only small", lost("PathMTU", "only small"));
    assert!(small.hints.iter().any(|line| line.contains("\"underlayMTU\":SIZE")), "{small:?}");
    fault(Level::Unknown, Group::Network, "nothing is known", |snapshot| {
        edit(nth(&mut snapshot.node_taps, 1), |node| node["status"]["receivers"] = json!([]));
    });
}

#[test]
fn taps_that_are_not_ready() {
    let because = |reason: &'static str| {
        move |snapshot: &mut Snapshot| snapshot.taps = Ok(vec![tap("False", "DestinationsReady", reason, "why")])
    };
    let words = "PodTap shop/web: NodeNotFound: why";
    fault(Level::Error, Group::Taps, words, because("NodeNotFound"));
    fault(Level::Warning, Group::Taps, "Suspended", because("Suspended"));
    fault(Level::Warning, Group::Taps, "no controller has seen", |snapshot| {
        let Tap::Namespaced(tap) = nth(&mut snapshot.taps, 0) else { panic!("it has a namespace") };
        tap.metadata.generation = Some(2);
    });
    // The same reason with other messages.
    let with_both = |condition: &'static str, status: &'static str| {
        move |snapshot: &mut Snapshot| {
            let taps = ["no node n8", "no node n9", "no node n8"];
            snapshot.taps = Ok(taps.map(|message| tap(status, condition, "NodeNotFound", message)).to_vec());
        }
    };
    for found in [faults(with_both("DestinationsReady", "False")), faults(with_both("Degraded", "True"))] {
        let messages: Vec<_> = found.iter().map(|finding| finding.message.as_str()).collect();
        let expected =
            ["PodTap shop/web, PodTap shop/web: NodeNotFound: no node n8", "PodTap shop/web: NodeNotFound: no node n9"];
        assert_eq!(messages, expected);
    }
}

#[test]
fn what_may_not_be_read_is_named() {
    let findings = faults(|snapshot| {
        snapshot.nodes = Err("nodes is forbidden".to_owned());
        snapshot.lease = Err("leases is forbidden".to_owned());
    });
    assert!(findings.iter().all(|finding| finding.level == Level::NotPermitted), "{findings:?}");
    let messages: Vec<_> = findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(
        messages,
        ["you may not read the lease: leases is forbidden", "you may not read nodes: nodes is forbidden"]
    );
    assert_eq!(Report::new(findings).exit(), Exit::NotPermitted);
}

#[test]
fn only_what_is_in_scope() {
    let scope = |node: Option<&str>| Scope { node: node.map(str::to_owned), ..Scope::default() };
    let restricted = healthy().restricted(&scope(Some("n2"))).expect("it exists");
    assert_eq!(restricted.node_taps.expect("they are known").len(), 1);
    assert!(healthy().restricted(&scope(Some("n9"))).is_err_and(|failure| failure.exit == Exit::Refused));
    // The objects of the nodes have no spec here, so the tap has no part on any.
    let of_tap = Scope { tap: Some("web".parse().expect("a name")), ..Scope::default() };
    assert_eq!(healthy().restricted(&of_tap).expect("it exists").nodes.expect("they are known").len(), 0);
}

#[test]
fn the_pages_name_the_same_versions() {
    let has = |file: &str, text: String| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
        let page = std::fs::read_to_string(path).expect("the page exists");
        assert!(page.contains(&text), "docs/{file}: {text}");
    };
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    has("install.md", format!("| Kubernetes | {} or newer", version(cluster::OLDEST)));
    has("install.md", format!("the oldest tested kernel is {}.", version(nodes::OLDEST_TESTED_KERNEL)));
    has("troubleshooting.md", format!("older than Linux {},", version(nodes::OLDEST_KERNEL)));
}
