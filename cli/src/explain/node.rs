//! A node: what it sends and receives.

use std::collections::BTreeMap;

use kube::Api;
use podtap_api::NodeTap;
use podtap_model::{NodeStatus, State, TapReference};
use serde::Serialize;

use super::{events::About, said};
use crate::{
    connection::Cluster,
    console::{BAD, CAUTION, GOOD, counted, plain, styled},
    exit::{Exit, Failure, Outcome, page_of},
    explain::tree::Tree,
};

/// What is known of a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    name: String,
    taps: BTreeMap<String, Vec<Part>>,
    /// Messages about what is not as it should be.
    problems: Vec<String>,
}

/// A sender or a receiver.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    what: String,
    state: State,
    reason: String,
    message: String,
}

impl Report {
    /// Reads it.
    pub async fn read(cluster: &Cluster, name: &str) -> Outcome<Self> {
        let api: Api<NodeTap> = Api::all(cluster.client.clone());
        let Some(node) = api.get_opt(name).await? else {
            return Err(Failure::new(
                Exit::Refused,
                format!("no tap has a part on the node {name}, or there is no such node"),
            ));
        };
        Ok(Self::of(name, &node))
    }

    pub(super) fn of(name: &str, node: &NodeTap) -> Self {
        let spec = &node.spec.0;
        let status = node.status.clone().unwrap_or_default();
        let mut taps: BTreeMap<String, Vec<Part>> = BTreeMap::new();
        let receivers = spec.receivers.iter().map(|receiver| (&receiver.tap, receiver.tap.uid.to_string()));
        let known: BTreeMap<String, TapReference> = spec
            .taps
            .iter()
            .map(|tap| (tap.uid.to_string(), tap.reference()))
            .chain(receivers.map(|(tap, uid)| (uid, tap.clone())))
            .collect();
        let tap_name = |uid: &str| {
            known.get(uid).map_or_else(|| format!("a tap that is being removed ({uid})"), ToString::to_string)
        };
        for sender in &status.senders {
            let pod = spec.senders.iter().find(|other| *other.pod.uid == *sender.pod_uid);
            let pod = pod.map_or_else(
                || sender.pod_uid.clone(),
                |sender| format!("{}/{}", sender.pod.namespace, sender.pod.name),
            );
            let interface = sender.interface.as_ref().map(|name| format!(", interface {name}")).unwrap_or_default();
            let messages: Vec<&str> = std::iter::once(sender.message.as_str())
                .chain(sender.degraded.iter().map(String::as_str))
                .filter(|m| !m.is_empty())
                .collect();
            let (state, reason) = (sender.state, sender.reason.to_string());
            let part =
                Part { what: format!("from pod {pod}{interface}"), state, reason, message: plain(&messages.join(" ")) };
            taps.entry(tap_name(&sender.tap_uid)).or_default().push(part);
        }
        for receiver in &status.receivers {
            let requested = spec.receivers.iter().find(|other| other.vni.get() == receiver.vni);
            let interface = requested.map_or_else(
                || "an interface".to_owned(),
                |requested| match &requested.pod {
                    Some(pod) => {
                        format!("interface {} in pod {}/{}", requested.interface_name, pod.namespace, pod.name)
                    }
                    None => format!("interface {}", requested.interface_name),
                },
            );
            let what = format!(
                "to {interface}, VNI {}, probes of {} arrive",
                receiver.vni,
                counted(receiver.pods_with_probes.len(), "pod")
            );
            let (state, reason, message) = (receiver.state, receiver.reason.to_string(), plain(&receiver.message));
            taps.entry(tap_name(&receiver.tap_uid)).or_default().push(Part { what, state, reason, message });
        }
        let mut problems = unfinished(node, &status);
        problems.extend((!loads_programs(&status)).then(|| NO_PROGRAMS.to_owned()));
        Self { name: name.to_owned(), taps, problems }
    }

    /// What its events are about: it, and what PodTap does on it. The kubelet has its own idea of the UID of its node.
    pub fn about(&self) -> Vec<About> {
        let about = |kind| About { kind, name: self.name.clone(), ..About::default() };
        vec![about("NodeTap"), about("Node")]
    }

    /// For people.
    pub fn tree(&self) -> Tree {
        let taps = self.taps.iter().map(|(tap, parts)| Tree::new(tap.clone()).with(parts.iter().map(Part::tree)));
        let problems = self.problems.iter().map(|problem| Tree::new(styled(CAUTION, problem)));
        let none = self.taps.is_empty().then(|| Tree::new("no tap has a part on it"));
        Tree::new(format!("node {}", self.name)).with(taps).with(none).with(problems)
    }
}

impl Part {
    fn tree(&self) -> Tree {
        let style = match self.state {
            State::Active => GOOD,
            State::Pending | State::Removing => CAUTION,
            State::Refused | State::Failed => BAD,
        };
        let state = styled(style, &format!("{:?}", self.state));
        if self.state == State::Active {
            return Tree::new(format!("{}  {state}{}", self.what, said(&self.message)));
        }
        let tree = Tree::new(format!("{}  {state} {}{}", self.what, self.reason, said(&self.message)));
        if style == BAD { tree.with([Tree::new(page_of(&self.reason))]) } else { tree }
    }
}

/// Whether the kernel of a node loads eBPF programs, as far as the node has told.
pub fn loads_programs(status: &NodeStatus) -> bool {
    status.features.get("ebpf") != Some(&false)
}

/// What nodes report where [`loads_programs`] is false.
pub const NO_PROGRAMS: &str = "the kernel of the node cannot load eBPF programs: taps that need new ones are refused";

/// What a node has not done yet.
pub fn unfinished(node: &NodeTap, status: &NodeStatus) -> Vec<String> {
    let mut problems = Vec::new();
    if node.status.is_none() {
        problems.push("the node has not reported anything: does its helper pod run?".to_owned());
    } else if status.observed_generation != node.metadata.generation {
        problems.push("the node has not applied the latest changes yet".to_owned());
    }
    problems.extend(status.leftovers.iter().chain(&status.unsearched).map(|text| plain(text)));
    problems
}
