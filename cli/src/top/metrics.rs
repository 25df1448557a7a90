//! The counters of a node, from the text of its helper pod's `/metrics` (`docs/reference.md`, "Metrics of a node"). Pure.

use std::collections::BTreeMap;

use podtap_model::Count;

/// A tap by its names in the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TapKey {
    /// Empty for a `ClusterPodTap`.
    pub namespace: String,
    pub name: String,
}

/// A tapped interface of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub tap: TapKey,
    pub namespace: String,
    pub pod: String,
    pub interface: String,
}

/// A receiver of a tap.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receiver {
    pub tap: TapKey,
    pub vni: u32,
}

/// What was counted of a tapped interface, since it was tapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Mirrored frames that entered the pod.
    pub ingress: Count,
    /// Mirrored frames that left it.
    pub egress: Count,
    /// Those of both that the sender device did not accept.
    pub failed: u64,
    /// Those of both that were truncated.
    pub truncated: u64,
    /// Frames above the limit, which were not mirrored.
    pub limited: u64,
}

/// What was counted at a receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Frames that arrived.
    pub frames: u64,
    /// Frames that were sent and did not arrive.
    pub lost: u64,
}

/// All counters of a node that are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub sent: BTreeMap<Target, Sent>,
    pub received: BTreeMap<Receiver, Received>,
}

impl Counters {
    /// Reads metrics in the `OpenMetrics` text format. What is not shown, and what other versions may add, is skipped.
    pub fn read(text: &str) -> Self {
        let mut counters = Self::default();
        for sample in text.lines().filter_map(Sample::read) {
            counters.add(&sample);
        }
        counters
    }

    fn add(&mut self, sample: &Sample<'_>) {
        let tap = TapKey { namespace: sample.label("tap_namespace"), name: sample.label("tap_name") };
        let (of_receiver, value) = (sample.name.starts_with("podtap_receiver_"), sample.value);
        if of_receiver {
            let Ok(vni) = sample.label("vni").parse() else { return };
            let received = self.received.entry(Receiver { tap, vni }).or_default();
            match sample.name {
                "podtap_receiver_frames_total" => received.frames = value,
                "podtap_receiver_lost_frames_total" => received.lost = value,
                _ => {}
            }
            return;
        }
        if tap.name.is_empty() {
            return;
        }
        let [namespace, pod, interface] = ["pod_namespace", "pod_name", "interface"].map(|label| sample.label(label));
        let sent = self.sent.entry(Target { tap, namespace, pod, interface }).or_default();
        let (direction, outcome) = (sample.label("direction"), sample.label("outcome"));
        match (sample.name, direction.as_str(), outcome.as_str()) {
            ("podtap_frames_total", "ingress", "mirrored") => sent.ingress.frames = value,
            ("podtap_frames_total", "egress", "mirrored") => sent.egress.frames = value,
            ("podtap_frame_bytes_total", "ingress", "mirrored") => sent.ingress.bytes = value,
            ("podtap_frame_bytes_total", "egress", "mirrored") => sent.egress.bytes = value,
            ("podtap_frames_total", _, "rate_limited") => sent.limited += value,
            ("podtap_mirror_failures_total", ..) => sent.failed += value,
            ("podtap_truncated_frames_total", ..) => sent.truncated += value,
            _ => {}
        }
    }
}

/// A line of metrics: its name, its labels, and a counter's value.
#[derive(Debug, PartialEq, Eq)]
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: u64,
}

impl<'a> Sample<'a> {
    /// None of a comment, and of what is no counter.
    fn read(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' ']).filter(|end| *end > 0 && !line.starts_with('#'))?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(mut inner) = rest.strip_prefix('{') {
            while !inner.starts_with('}') {
                let (label, quoted) = inner.split_once("=\"")?;
                let (value, after) = unquoted(quoted)?;
                labels.push((label.trim_start_matches(','), value));
                inner = after;
            }
            rest = &inner[1..];
        }
        Some(Self { name, labels, value: rest.split_whitespace().next()?.parse().ok()? })
    }

    fn label(&self, name: &str) -> String {
        let found = self.labels.iter().find(|(label, _)| *label == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}

/// The text before the next quotation mark, with what is escaped in it, and the text after the mark.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                escaped => escaped,
            }),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        encoding::text::encode,
        metrics::{counter::Counter, family::Family},
        registry::Registry,
    };

    use super::*;

    const TEXT: &str = r#"# HELP podtap_receiver_frames Mirrored frames that arrived at a receiver of this node.
# TYPE podtap_receiver_frames counter
podtap_receiver_frames_total{tap_namespace="shop",tap_name="web",vni="5001"} 90
podtap_receiver_lost_frames_total{tap_namespace="shop",tap_name="web",vni="5001"} 10
podtap_receiver_rejected_packets_total 3
podtap_frames_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="ingress",outcome="mirrored"} 40
podtap_frames_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="egress",outcome="mirrored"} 60
podtap_frames_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="egress",outcome="rate_limited"} 7
podtap_frames_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="ingress",outcome="rate_limited"} 1
podtap_frames_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="ingress",outcome="filtered"} 999
podtap_frame_bytes_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="egress",outcome="mirrored"} 6000
podtap_mirror_failures_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="egress"} 2
podtap_truncated_frames_total{tap_namespace="shop",tap_name="web",pod_namespace="shop",pod_name="web-0",interface="eth0",direction="egress"} 4
podtap_frames_total{tap_namespace="",tap_name="all",pod_namespace="db",pod_name="db-0",interface="eth0",direction="ingress",outcome="mirrored"} 5
podtap_tap_helper_restarts_total 0
# EOF
"#;

    #[test]
    fn the_counters_of_a_node_are_read() {
        let counters = Counters::read(TEXT);
        let web = TapKey { namespace: "shop".to_owned(), name: "web".to_owned() };
        let received = BTreeMap::from([(Receiver { tap: web.clone(), vni: 5001 }, Received { frames: 90, lost: 10 })]);
        assert_eq!(counters.received, received);
        let target = |tap: &TapKey, namespace: &str, pod: &str| Target {
            tap: tap.clone(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            interface: "eth0".to_owned(),
        };
        let sent = Sent {
            ingress: Count { frames: 40, bytes: 0 },
            egress: Count { frames: 60, bytes: 6000 },
            failed: 2,
            truncated: 4,
            limited: 8,
        };
        let all = TapKey { namespace: String::new(), name: "all".to_owned() };
        let of_all = Sent { ingress: Count { frames: 5, bytes: 0 }, ..Sent::default() };
        assert_eq!(
            counters.sent,
            BTreeMap::from([(target(&web, "shop", "web-0"), sent), (target(&all, "db", "db-0"), of_all)])
        );
    }

    /// An interface may have any name without a slash or a space.
    #[test]
    fn labels_are_read_as_the_agent_writes_them() {
        for value in ["eth0", r#"a"b"#, r"a\nb", "\\", "a,b=\"}", "{é} 1", "a\nb"] {
            let family = Family::<Vec<(String, String)>, Counter>::default();
            let labels = [("first", value), ("second", "2")].map(|(label, value)| (label.to_owned(), value.to_owned()));
            family.get_or_create(&labels.to_vec()).inc_by(u64::MAX);
            let mut registry = Registry::with_prefix("podtap");
            registry.register("frames", "Frames", family);
            let mut text = String::new();
            encode(&mut text, &registry).expect("it can be encoded");
            let samples: Vec<Sample<'_>> = text.lines().filter_map(Sample::read).collect();
            let labels = vec![("first", value.to_owned()), ("second", "2".to_owned())];
            assert_eq!(samples, [Sample { name: "podtap_frames_total", labels, value: u64::MAX }], "{text}");
        }
    }

    #[test]
    fn what_is_no_counter_is_skipped() {
        for line in ["", "# EOF", "a{b=\"c\"", "a{b=\"c} 1", "a 1.5", "a", "{b=\"c\"} 1", "a{b} 1"] {
            assert_eq!(Sample::read(line), None, "{line}");
        }
    }
}
