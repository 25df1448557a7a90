//! What the pods of `--network` tell of the paths between nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use podtap_model::PathEvent;

use super::{
    firewall, named, network,
    report::{Finding, Group, Level},
    session::{Member, Observed},
    snapshot::Snapshot,
};
use crate::{
    console::counted,
    exit::{page, page_of},
};

/// What passes from a node to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Packets of the size of the MTU.
    Full,
    /// The largest IP packet that has arrived, in bytes, which is less than the MTU.
    UpTo(u32),
    /// Nothing.
    Blocked,
    /// The receiver's port is in use.
    PortInUse,
    /// One of the two pods does not run.
    Untried,
}

impl State {
    /// Whether waiting changes nothing.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Full | Self::PortInUse)
    }
}

/// A direction between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub from: String,
    pub to: String,
    pub state: State,
}

/// All paths between the nodes.
pub fn paths(observed: &BTreeMap<String, Observed>, members: &[Member]) -> Vec<Path> {
    let names = || members.iter().map(|member| member.node.clone());
    let pairs = names().flat_map(|from| names().map(move |to| (from.clone(), to))).filter(|(from, to)| from != to);
    let events = |node: &str| observed.get(node).and_then(|observed| observed.events.as_ref());
    let state = |from: &str, to: &str| {
        let (Some(sender), Some(receiver)) = (events(from), events(to)) else { return State::Untried };
        if receiver.contains(&PathEvent::PortInUse) {
            return State::PortInUse;
        }
        let mtu = sender.iter().find_map(|event| match event {
            PathEvent::Sends { to: name, mtu } if name == to => Some(*mtu),
            _ => None,
        });
        let sizes = receiver.iter().filter_map(|event| match event {
            PathEvent::Received { from: name, size } if name == from => Some(*size),
            _ => None,
        });
        match (sizes.max(), mtu) {
            (None, _) => State::Blocked,
            (Some(size), Some(mtu)) if size < mtu => State::UpTo(size),
            (Some(_), _) => State::Full,
        }
    };
    pairs.map(|(from, to)| Path { state: state(&from, &to), from, to }).collect()
}

/// The findings about them.
pub fn check(snapshot: &Snapshot, observed: &BTreeMap<String, Observed>, members: &[Member]) -> Vec<Finding> {
    let port = snapshot.receiver_port();
    // Of nodes without a receiver, it is not PodTap that uses the port.
    let is_foreign = |path: &Path| {
        path.state == State::PortInUse && snapshot.receiving.as_ref().is_some_and(|nodes| !nodes.contains(&path.to))
    };
    let (foreign, paths): (Vec<_>, Vec<_>) = paths(observed, members).into_iter().partition(is_foreign);
    let mut states: BTreeMap<State, Vec<String>> = BTreeMap::new();
    for path in paths {
        states.entry(path.state).or_default().push(format!("{} to {}", path.from, path.to));
    }
    let mut findings: Vec<_> = observed
        .iter()
        .filter_map(|(node, observed)| Some((node, observed.trouble.as_ref().filter(|_| observed.events.is_none())?)))
        .map(|(node, why)| {
            Finding::error(Group::Network, format!("the pod of doctor on the node {node} does not run: {why}"))
                .page(page_of("HelperPodFailed"))
        })
        .collect();
    let occupied: BTreeSet<String> = foreign.into_iter().map(|path| path.to).collect();
    if !occupied.is_empty() {
        let nodes = named("node", &occupied.into_iter().collect::<Vec<_>>());
        let text = format!("another program uses UDP {port} on the {nodes}: receivers of taps cannot");
        let hint = "ss -ulpn tells which. End it, or choose another receiverPort in the PodTapPolicy";
        findings.push(Finding::error(Group::Network, text).hint(hint).page(page_of("PortInUse")));
    }
    let smallest = states.keys().filter_map(|state| match state {
        State::UpTo(size) => Some(*size),
        _ => None,
    });
    let smallest = smallest.min();
    for (state, paths) in &states {
        let which = format!("{}: {}", counted(paths.len(), "path"), named("", paths));
        findings.push(match state {
            State::Full => Finding::ok(
                Group::Network,
                format!("UDP {port} passes, small packets and those of the MTU, on {which}"),
            ),
            State::UpTo(size) => {
                let text =
                    format!("UDP {port} passes in IP packets of up to {size} bytes, and not of the MTU, on {which}");
                let finding = Finding::error(Group::Network, text).page(page("cni.md", "mtu"));
                // One value for the cluster: the smallest.
                if smallest == Some(*size) { finding.hint(network::underlay_mtu(&size.to_string())) } else { finding }
            }
            State::Blocked => Finding::error(Group::Network, format!("UDP {port} does not pass on {which}"))
                .hint(firewall::rules(snapshot))
                .page(page("firewalls.md", "")),
            State::PortInUse => {
                let text = format!("UDP {port} is in use at the receiving node, and was not tried, on {which}");
                Finding::new(Group::Network, Level::Unknown, text)
                    .hint("By receivers of taps, whose probes tell whether it passes. Or by another program: ss -ulpn")
            }
            State::Untried => {
                let text = format!("not tried, because a pod did not start in time, on {which}");
                Finding::new(Group::Network, Level::Unknown, text)
            }
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{
        super::{fixtures::healthy, session::members},
        *,
    };

    fn sends(to: &str, mtu: u32) -> PathEvent {
        PathEvent::Sends { to: to.to_owned(), mtu }
    }

    fn received(from: &str, size: u32) -> PathEvent {
        PathEvent::Received { from: from.to_owned(), size }
    }

    /// The findings about these reports of n1 and n2.
    fn findings(of_n1: &[PathEvent], of_n2: &[PathEvent]) -> Vec<Finding> {
        let observed = |events: &[PathEvent]| Observed {
            trouble: events.is_empty().then(|| "ImagePullBackOff".to_owned()),
            events: (!events.is_empty()).then(|| events.iter().cloned().collect()),
        };
        let all = [("n1".to_owned(), observed(of_n1)), ("n2".to_owned(), observed(of_n2))].into();
        let snapshot = healthy();
        check(&snapshot, &all, &members(&snapshot, None))
    }

    #[test]
    fn what_passes_and_what_does_not() {
        let good = [sends("n2", 1500), received("n2", 128), received("n2", 1500)];
        let all = findings(&good, &[sends("n1", 1500), received("n1", 1500)]);
        let [finding] = &all[..] else { panic!("{all:?}") };
        assert_eq!((finding.level, finding.message.contains("2 paths: n1 to n2, n2 to n1")), (Level::Ok, true));

        let blocked = findings(&good, &[sends("n1", 1500)]);
        let [_, error] = &blocked[..] else { panic!("{blocked:?}") };
        assert!(
            error.level == Level::Error && error.message.ends_with("does not pass on 1 path: n1 to n2"),
            "{error:?}"
        );
        assert!(error.hints.iter().any(|line| line.contains("ufw allow")), "{error:?}");

        let small = findings(&good, &[sends("n1", 1500), received("n1", 1350), received("n1", 1400)]);
        let [_, error] = &small[..] else { panic!("{small:?}") };
        assert!(error.message.contains("of up to 1400 bytes, and not of the MTU, on 1 path: n1 to n2"), "{error:?}");
        assert!(error.hints.iter().any(|line| line.contains("\"underlayMTU\":1400")), "{error:?}");
    }

    #[test]
    fn paths_that_were_not_tried_are_not_known() {
        let good = [sends("n2", 1500), received("n2", 1500)];
        let taken = findings(&good, &[sends("n1", 1500), PathEvent::PortInUse]);
        assert!(
            taken.iter().any(|found| found.level == Level::Unknown && found.message.contains("is in use")),
            "{taken:?}"
        );
        // n1 has no receiver.
        let foreign = findings(&[sends("n2", 1500), PathEvent::PortInUse], &[sends("n1", 1500), received("n1", 1500)]);
        let levels: Vec<_> = foreign.iter().map(|found| found.level).collect();
        assert_eq!(levels, [Level::Error, Level::Ok], "{foreign:?}");
        assert!(foreign[0].message.contains("another program uses UDP 14789 on the node n1"), "{foreign:?}");
        let absent = findings(&good, &[]);
        let levels: Vec<_> = absent.iter().map(|found| found.level).collect();
        assert_eq!(levels, [Level::Error, Level::Unknown], "{absent:?}");
        assert!(absent[0].message.ends_with("on the node n2 does not run: ImagePullBackOff"), "{absent:?}");
    }
}
