//! Nodes: whether PodTap can run there, and whether it does where it is needed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use podtap_api::NodeTap;
use podtap_model::{Reason, State};

use super::{
    cni, is_component, named,
    report::{Finding, Group},
    snapshot::Snapshot,
    unread,
};
use crate::{
    console::counted,
    exit::{page, page_of},
    explain::node::{NO_PROGRAMS, loads_programs, unfinished},
    forward::is_ready,
    pod_state::trouble,
};

/// The oldest kernel that loads PodTap's programs, as docs/troubleshooting.md has it.
pub const OLDEST_KERNEL: (u32, u32) = (5, 11);
/// The oldest one that PodTap is tested on, as docs/install.md has it.
pub const OLDEST_TESTED_KERNEL: (u32, u32) = (6, 1);

/// The findings about them.
pub fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = machines(snapshot);
    findings.extend(cni::check(snapshot));
    match &snapshot.node_taps {
        Err(message) => findings.push(unread(Group::Nodes, "NodeTaps", message)),
        Ok(node_taps) if node_taps.is_empty() => {
            findings.push(Finding::ok(Group::Nodes, "no node has a part of a tap, so none needs a helper pod"));
        }
        Ok(node_taps) => {
            findings.extend(helpers(snapshot, node_taps));
            for node_tap in node_taps {
                findings.extend(kernel(node_tap));
                findings.extend(parts(node_tap));
            }
        }
    }
    findings
}

/// What the nodes are: the same before an installation.
pub fn machines(snapshot: &Snapshot) -> Vec<Finding> {
    let nodes = match &snapshot.nodes {
        Ok(nodes) => nodes,
        Err(message) => return vec![unread(Group::Nodes, "nodes", message)],
    };
    let mut findings = Vec::new();
    let mut all = |level: fn(Group, String) -> Finding, names: Vec<String>, what: &str| {
        if !names.is_empty() {
            let text = format!("{}: {what}", named("node", &names));
            findings.push(level(Group::Nodes, text).page(page("install.md", "what-it-needs")));
        }
    };
    let of = |is_it: &dyn Fn(&Node) -> bool| -> Vec<String> {
        nodes.iter().filter(|node| is_it(node)).map(ResourceExt::name_any).collect()
    };
    let runs = |node: &Node| is_linux(node) && !is_virtual(node);
    let kernel = |node: &Node| info(node).and_then(|info| version(&info.kernel_version));
    all(Finding::warning, of(&|node| !is_linux(node)), "not Linux: their pods cannot be tapped");
    all(
        Finding::warning,
        of(&is_virtual),
        "without a machine of their own (Fargate, virtual kubelet): they run no helper pods, so their pods cannot be tapped",
    );
    all(
        Finding::error,
        of(&|node| node.name_any().starts_with("gk3-")),
        "of GKE Autopilot, which admits no helper pods: use a Standard cluster",
    );
    all(
        Finding::error,
        of(&|node| runs(node) && kernel(node).is_some_and(|kernel| kernel < OLDEST_KERNEL)),
        "their kernels are older than 5.11, and cannot load PodTap's eBPF programs",
    );
    let is_untested = |kernel| (OLDEST_KERNEL..OLDEST_TESTED_KERNEL).contains(&kernel);
    all(
        Finding::warning,
        of(&|node| runs(node) && kernel(node).is_some_and(is_untested)),
        "their kernels are older than 6.1, the oldest that PodTap is tested on",
    );
    all(
        Finding::warning,
        of(&|node| runs(node) && info(node).is_some_and(|info| info.architecture != "amd64")),
        "not of the architecture amd64: they need an image that is built for theirs, and PodTap is not tested there",
    );
    all(Finding::error, of(&|node| runs(node) && !node_is_ready(node)), "not Ready, so nothing changes there");
    if nodes.is_empty() {
        findings.push(Finding::ok(Group::Nodes, "no node has a part of it"));
    } else if findings.is_empty() {
        findings.push(Finding::ok(Group::Nodes, format!("PodTap can run on {}", counted(nodes.len(), "node"))));
    }
    findings
}

fn info(node: &Node) -> Option<&k8s_openapi::api::core::v1::NodeSystemInfo> {
    node.status.as_ref()?.node_info.as_ref()
}

/// The first two numbers of `6.1.0-13-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn is_linux(node: &Node) -> bool {
    info(node).is_none_or(|info| info.operating_system == "linux")
}

/// Whether pods with the network of the node can be started on it.
pub fn can_run(node: &Node) -> bool {
    is_linux(node) && !is_virtual(node) && node_is_ready(node)
}

fn is_virtual(node: &Node) -> bool {
    let has = |key: &str, value: &str| node.labels().get(key).is_some_and(|found| found == value);
    has("type", "virtual-kubelet") || has("eks.amazonaws.com/compute-type", "fargate")
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_ == "Ready").all(|condition| condition.status == "True")
}

/// Whether each node with a `NodeTap` has a helper pod that is ready.
fn helpers(snapshot: &Snapshot, node_taps: &[NodeTap]) -> Vec<Finding> {
    let pods = match &snapshot.pods {
        Ok(pods) => pods,
        Err(message) => return vec![unread(Group::Nodes, "helper pods", message)],
    };
    let mut findings = Vec::new();
    for node in node_taps.iter().map(ResourceExt::name_any) {
        let of_node = |pod: &&k8s_openapi::api::core::v1::Pod| {
            let is_there = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_ref() == Some(&node));
            is_there && is_component(pod, "helper") && pod.metadata.deletion_timestamp.is_none()
        };
        let helpers: Vec<_> = pods.iter().filter(of_node).collect();
        if helpers.iter().any(|pod| is_ready(pod)) {
            continue;
        }
        let (home, error) = (&snapshot.home, |message| Finding::error(Group::Nodes, message));
        let finding = match helpers.first() {
            Some(pod) => {
                let why = trouble(pod).unwrap_or_else(|| "it is not ready".to_owned());
                let name = pod.name_any();
                error(format!("the helper pod {name} of the node {node} does not work: {why}"))
                    .hint(format!("kubectl -n {home} describe pod {name}"))
                    .page(page_of(Reason::HelperPodFailed.as_str()))
            }
            None => error(format!("the node {node} has no helper pod"))
                .hint(format!("kubectl -n {home} logs deploy/podtap-controller"))
                .page(page_of(Reason::HelperPodRejected.as_str())),
        };
        findings.push(finding);
    }
    let ready = node_taps.len() - findings.len();
    if ready > 0 {
        findings.push(Finding::ok(Group::Nodes, format!("the helper pods of {} are ready", counted(ready, "node"))));
    }
    findings
}

/// What the kernel lacks, and what the node has not done yet.
fn kernel(node_tap: &NodeTap) -> Vec<Finding> {
    let status = node_tap.status.clone().unwrap_or_default();
    let node = node_tap.name_any();
    let mut findings: Vec<_> = unfinished(node_tap, &status)
        .into_iter()
        .map(|message| Finding::warning(Group::Nodes, format!("{node}: {message}")))
        .collect();
    if !loads_programs(&status) {
        findings.push(
            Finding::error(Group::Nodes, format!("{node}: {NO_PROGRAMS}"))
                .hint("It needs Linux 5.11 with CONFIG_BPF_SYSCALL, and no lockdown: cat /sys/kernel/security/lockdown")
                .page(page_of(Reason::KernelFeatureMissing.as_str())),
        );
    }
    findings
}

/// Senders and receivers that are not in place, by their cause.
fn parts(node_tap: &NodeTap) -> Vec<Finding> {
    let node = node_tap.name_any();
    let status = node_tap.status.clone().unwrap_or_default();
    let senders = status.senders.iter().map(|part| (part.state, part.reason, &part.message, "sender"));
    let receivers = status.receivers.iter().map(|part| (part.state, part.reason, &part.message, "receiver"));
    let mut causes: BTreeMap<(Reason, &str, &str), usize> = BTreeMap::new();
    for (state, reason, message, kind) in senders.chain(receivers) {
        if matches!(state, State::Failed | State::Refused) {
            *causes.entry((reason, message.as_str(), kind)).or_default() += 1;
        }
    }
    let finding = |((reason, message, kind), count): ((Reason, &str, &str), usize)| {
        let finding =
            Finding::error(Group::Nodes, format!("{node}: {} with {reason}: {message}", counted(count, kind)));
        let finding = if reason == Reason::KernelFeatureMissing {
            finding.hint("Load the modules on the node: modprobe -a vxlan sch_ingress cls_bpf act_mirred nf_tables")
        } else {
            finding
        };
        finding.page(page_of(reason.as_str()))
    };
    causes.into_iter().map(finding).collect()
}
