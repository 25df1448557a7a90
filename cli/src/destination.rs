//! DEST: where mirrored frames are sent.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use podtap_api::{
    CollectorDestination, DEFAULT_EXTERNAL_PORT, Destination, ExternalDestination, NodeDestination, PodDestination,
};
use podtap_model::{FrameFormat, InterfaceName};

use crate::{selector, target::label};

/// One `--to`.
#[derive(Clone, Debug, PartialEq)]
pub struct To {
    /// `NAME=` before it.
    name: Option<String>,
    kind: DestinationKind,
}

#[derive(Clone, Debug, PartialEq)]
enum DestinationKind {
    Node(NodeDestination),
    Pod(PodDestination),
    External(IpAddr, u16),
    Collector,
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name has no slash, and the "=" of `pods/app=ids` comes after one.
        let named = text.split_once('=').filter(|(name, _)| !name.contains(['/', ':', '.']));
        let (name, kind) = named.map_or((None, text), |(name, kind)| (Some(name), kind));
        if name.is_some_and(|name| label(name) != name) {
            return Err(format!("the name before {kind:?} must consist of lower-case letters, digits and hyphens"));
        }
        Ok(Self { name: name.map(str::to_owned), kind: kind.parse()? })
    }
}

impl FromStr for DestinationKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "collector" {
            return Ok(Self::Collector);
        }
        if let Some((kind, rest)) = text.split_once('/') {
            // Neither names nor labels contain colons.
            let (name, interface) = rest.split_once(':').map_or((rest, None), |(name, rest)| (name, Some(rest)));
            let interface_name = interface.map(str::parse::<InterfaceName>).transpose().map_err(|e| e.to_string())?;
            if name.is_empty() {
                return Err(format!("{text:?} lacks a name"));
            }
            let pod = PodDestination { interface_name: interface_name.clone(), ..PodDestination::default() };
            return match kind {
                "node" => Ok(Self::Node(NodeDestination { name: name.to_owned(), interface_name })),
                "pod" => Ok(Self::Pod(PodDestination { name: Some(name.to_owned()), ..pod })),
                "pods" => Ok(Self::Pod(PodDestination { pod_selector: Some(selector::parse(name)?.into()), ..pod })),
                _ => Err(usage(text)),
            };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::External(address, DEFAULT_EXTERNAL_PORT));
        }
        match text.parse::<SocketAddr>() {
            Ok(socket) if socket.port() > 0 => Ok(Self::External(socket.ip(), socket.port())),
            _ => Err(usage(text)),
        }
    }
}

fn usage(text: &str) -> String {
    format!(
        "{text:?} is not a destination: use node/NAME[:INTERFACE], pod/NAME[:INTERFACE], pods/SELECTOR[:INTERFACE], IP[:PORT] or collector"
    )
}

impl DestinationKind {
    /// What to call it if there are several.
    fn name(&self) -> String {
        match self {
            Self::Node(NodeDestination { name, .. }) | Self::Pod(PodDestination { name: Some(name), .. }) => {
                label(name)
            }
            Self::Pod(_) => "pods".to_owned(),
            Self::External(address, _) => label(&address.to_string()),
            Self::Collector => "collector".to_owned(),
        }
    }
}

/// How frames are sent to all destinations of a kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// To nodes and pods.
    pub frame_format: FrameFormat,
    /// To external endpoints.
    pub probe: bool,
    /// To external endpoints.
    pub metadata: bool,
    /// To pods.
    pub packet_socket: bool,
}

/// A destination that is of no kind yet.
pub fn none(name: String) -> Destination {
    Destination { name, node: None, pod: None, external: None, collector: None, frame_format: FrameFormat::default() }
}

/// The destinations of a tap. A single one needs no name; several get one each, of what they are.
pub fn destinations(all: Vec<To>, manner: Manner) -> Vec<Destination> {
    let is_single = all.len() == 1;
    let mut taken: BTreeSet<String> = all.iter().filter_map(|to| to.name.clone()).collect();
    let mut unique = |wanted: String| {
        let numbered = (2..).map(|number| format!("{wanted}-{number}"));
        let name = std::iter::once(wanted.clone()).chain(numbered).find(|name| !taken.contains(name));
        let name = name.unwrap_or(wanted);
        taken.insert(name.clone());
        name
    };
    all.into_iter()
        .map(|To { name, kind }| {
            let name = name.unwrap_or_else(|| if is_single { "main".to_owned() } else { unique(kind.name()) });
            let destination = none(name);
            let Manner { frame_format, probe, metadata, packet_socket } = manner;
            match kind {
                DestinationKind::Node(node) => Destination { node: Some(node), frame_format, ..destination },
                DestinationKind::Pod(pod) => {
                    let pod = PodDestination { packet_socket, ..pod };
                    Destination { pod: Some(pod), frame_format, ..destination }
                }
                DestinationKind::External(address, port) => {
                    let external = ExternalDestination { address, port, probe, metadata };
                    Destination { external: Some(external), ..destination }
                }
                DestinationKind::Collector => Destination { collector: Some(CollectorDestination {}), ..destination },
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(all: &[&str]) -> serde_json::Value {
        let all = all.iter().map(|text| text.parse().expect(text)).collect();
        serde_json::to_value(destinations(all, Manner::default())).expect("JSON")
    }

    #[test]
    fn destinations_of_each_kind() {
        for (text, destination) in [
            ("node/n2", json!({"name": "main", "node": {"name": "n2"}})),
            ("node/n2:mirror", json!({"name": "main", "node": {"name": "n2", "interfaceName": "mirror"}})),
            ("ids=pod/ids-0:tap0", json!({"name": "ids", "pod": {"name": "ids-0", "interfaceName": "tap0"}})),
            (
                "pods/app=ids,tier!=test:tap0",
                json!({"name": "main", "pod": {"interfaceName": "tap0", "podSelector": {"matchLabels": {"app": "ids"},
                    "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["test"]}]}}}),
            ),
            ("192.0.2.10", json!({"name": "main", "external": {"address": "192.0.2.10", "port": 4789}})),
            ("[2001:db8::1]:5000", json!({"name": "main", "external": {"address": "2001:db8::1", "port": 5000}})),
            ("2001:db8::1", json!({"name": "main", "external": {"address": "2001:db8::1", "port": 4789}})),
            ("collector", json!({"name": "main", "collector": {}})),
        ] {
            assert_eq!(written(&[text]), json!([destination]), "{text}");
        }
    }

    #[test]
    fn wrong_destinations_say_what_is_right() {
        for text in [
            "",
            "n2",
            "node/",
            "node/n2:a/b",
            "node/n2:",
            "pods/a b",
            "192.0.2.10:0",
            "deploy/web",
            "A=node/n2",
            "host.example:4789",
        ] {
            let message = text.parse::<To>().expect_err(text);
            assert!(!message.is_empty(), "{text}");
        }
    }

    #[test]
    fn several_destinations_have_names() {
        let names = |all: &[&str]| {
            let written = written(all);
            let names: Vec<_> =
                written.as_array().into_iter().flatten().map(|d| d["name"].as_str().map(str::to_owned)).collect();
            names.into_iter().flatten().collect::<Vec<_>>()
        };
        assert_eq!(names(&["node/n1", "pod/n1", "192.0.2.10", "collector"]), ["n1", "n1-2", "192-0-2-10", "collector"]);
        assert_eq!(names(&["x=node/n1", "pod/x"]), ["x", "x-2"]);
    }
}
