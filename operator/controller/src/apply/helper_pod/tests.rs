use super::*;

const MEMORY: u64 = 511 << 20;

fn template() -> HelperTemplate {
    HelperTemplate {
        namespace: "podtap-system".into(),
        image: "podtap:1".into(),
        pull_policy: "IfNotPresent".into(),
        pull_secrets: vec![],
        priority_class: None,
        log_json: false,
        metrics_port: 14790,
    }
}

fn spec() -> PodSpec {
    template().pod("n1", "uid-of-nodetap", MEMORY).spec.expect("a spec")
}

fn container(spec: &PodSpec, name: &str) -> Container {
    spec.containers.iter().find(|container| container.name == name).expect("it exists").clone()
}

fn mounts(container: &Container) -> Vec<&str> {
    container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect()
}

#[test]
fn the_tap_helper_has_exactly_its_privileges() {
    let helper = container(&spec(), "tap-helper");
    let security = helper.security_context.clone().expect("one");
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.run_as_user, Some(0));
    let capabilities = security.capabilities.expect("some");
    assert_eq!(capabilities.add.expect("some"), ["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "BPF"]);
    assert_eq!(capabilities.drop.expect("some"), ["ALL"]);
    assert_eq!(security.seccomp_profile, None, "that of the pod applies");
    assert_eq!(security.app_armor_profile.expect("one").type_, "Unconfined");
    assert_eq!(security.se_linux_options.expect("some").type_.as_deref(), Some("spc_t"));
    assert_eq!(mounts(&helper), ["socket"], "no token");
    assert_eq!((helper.env, helper.env_from), (None, None));
}

#[test]
fn the_tap_helper_has_the_memory_of_its_node() {
    let limits = container(&spec(), "tap-helper").resources.and_then(|resources| resources.limits).expect("some");
    assert_eq!(limits["memory"].0, "511Mi");
}

#[test]
fn the_agent_has_no_privileges() {
    let agent = container(&spec(), "agent");
    let security = agent.security_context.clone().expect("one");
    assert_eq!((security.privileged, security.allow_privilege_escalation), (Some(false), Some(false)));
    assert_eq!((security.run_as_non_root, security.read_only_root_filesystem), (Some(true), Some(true)));
    assert!(security.run_as_user.is_some_and(|user| user > 0));
    let capabilities = security.capabilities.expect("some");
    assert_eq!((capabilities.add, capabilities.drop.expect("some").as_slice()), (None, ["ALL".to_owned()].as_slice()));
    assert_eq!(mounts(&agent), ["socket", "token"]);
}

#[test]
fn both_log_as_the_controller_is_told() {
    let words = |template: HelperTemplate| -> Vec<bool> {
        let containers = template.pod("n1", "uid", MEMORY).spec.expect("a spec").containers;
        containers.iter().map(|c| c.command.iter().flatten().any(|word| word == "--log-json")).collect()
    };
    assert_eq!(words(template()), [false, false]);
    assert_eq!(words(HelperTemplate { log_json: true, ..template() }), [true, true]);
}

#[test]
fn the_agent_serves_metrics_where_it_is_told() {
    let listens = |metrics_port| {
        let pod = HelperTemplate { metrics_port, ..template() }.pod("n1", "uid", MEMORY);
        let words = container(&pod.spec.expect("a spec"), "agent").command.expect("a command");
        let position = words.iter().position(|word| word == "--listen").expect("a flag");
        (words[position + 1].clone(), pod.metadata.annotations.expect("some")[podtap_api::METRICS_PORT].clone())
    };
    assert_eq!(listens(14790), ("[::]:14790".to_owned(), "14790".to_owned()));
    assert_eq!(listens(0), ("127.0.0.1:14791".to_owned(), "14791".to_owned()), "reached through the kubelet only");
}

#[test]
fn the_kubelet_asks_both_containers_whether_they_work() {
    let spec = spec();
    for (name, program) in [("agent", "/podtap-agent"), ("tap-helper", "/tap-helper")] {
        let container = container(&spec, name);
        let probes = [container.startup_probe, container.liveness_probe];
        for probe in probes.into_iter().chain([container.readiness_probe].into_iter().filter(|_| name == "agent")) {
            // A port could be in use on the node, or answered by the pod that this one replaces.
            let command = probe.expect("one").exec.expect("a command").command.expect("words");
            assert_eq!(&command[..3], [program, "probe", "--socket"]);
        }
    }
}

#[test]
fn the_pod_shares_the_network_and_processes_of_its_node_only() {
    let spec = spec();
    assert_eq!((spec.host_network, spec.host_pid, spec.host_ipc), (Some(true), Some(true), None));
    assert_eq!(spec.automount_service_account_token, Some(false));
    let profile = spec.security_context.and_then(|security| security.seccomp_profile).expect("one");
    assert_eq!(profile.type_, "RuntimeDefault");
    let volumes = spec.volumes.expect("some");
    assert!(volumes.iter().all(|volume| volume.host_path.is_none()), "nothing of the node's files");
    assert_eq!(volumes.len(), 2);
    assert_eq!((spec.containers.len(), spec.init_containers), (2, None));
    assert!(spec.containers.iter().all(|c| c.ports.is_none()), "no port of the node is taken");
}

#[test]
fn it_is_bound_to_its_node_and_deleted_with_the_node_tap() {
    let pod = template().pod("ip-10-0-0-1.internal", "uid-of-nodetap", MEMORY);
    let owner = &pod.metadata.owner_references.as_ref().expect("one")[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("NodeTap", "ip-10-0-0-1.internal"));
    assert_eq!((owner.uid.as_str(), owner.controller), ("uid-of-nodetap", Some(true)));
    let spec = pod.spec.expect("a spec");
    assert_eq!(spec.node_name.as_deref(), Some("ip-10-0-0-1.internal"));
    let toleration = &spec.tolerations.expect("one")[0];
    assert_eq!((toleration.operator.as_deref(), &toleration.key, &toleration.effect), (Some("Exists"), &None, &None));
}

#[test]
fn what_drains_nodes_may_delete_it_or_leave_it_alone() {
    let metadata = template().pod("n1", "uid", MEMORY).metadata;
    let value = |map: Option<std::collections::BTreeMap<String, String>>, name: &str| map.expect("some").remove(name);
    let autoscaler = value(metadata.annotations, "cluster-autoscaler.kubernetes.io/daemonset-pod");
    assert_eq!(autoscaler.as_deref(), Some("true"));
    assert_eq!(value(metadata.labels, "cluster.x-k8s.io/drain").as_deref(), Some("skip"));
}

#[test]
fn every_pod_has_a_name_of_its_own() {
    let metadata = template().pod("n1", "uid", MEMORY).metadata;
    assert_eq!((metadata.name, metadata.generate_name.as_deref()), (None, Some("podtap-helper-n1-")));
}

#[test]
fn a_new_image_makes_a_new_hash_and_another_node_does_not() {
    let hash = |pod: Pod| pod.metadata.annotations.expect("some")[TEMPLATE_HASH].clone();
    assert_eq!(hash(template().pod("n1", "a", MEMORY)), hash(template().pod("n2", "b", 2 * MEMORY)));
    let newer = HelperTemplate { image: "podtap:2".into(), ..template() };
    assert_ne!(newer.hash(), template().hash());
}

#[test]
fn the_controller_recognizes_its_own_pods() {
    use crate::store::pod::CachedPod;
    let helper = |pod: Pod| CachedPod::new(pod, "podtap-system").helper;
    let pod = template().pod("n1", "uid", MEMORY);
    assert_eq!(helper(pod.clone()).expect("a helper").template, template().hash());
    let mut elsewhere = pod;
    elsewhere.metadata.namespace = Some("shop".into());
    assert_eq!(helper(elsewhere), None, "labels in another namespace mean nothing");
}
