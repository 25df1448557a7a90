//! A plan for people.

use std::collections::BTreeMap;

use podtap_model::{Direction, Oversize};

use super::{
    place::Place,
    report::{Creates, Report},
    rows::{Row, RowState},
    wire::Family,
};
use crate::{
    console::{BAD, CAUTION, counted, plain, styled},
    exit::{Exit, page_of},
    pods::Cause,
    table::Columns,
};

impl Report {
    /// All of it.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n", self.summary());
        if self.rows().next().is_some() {
            let header = ["NODE", "POD", "DEVICE", "MTU", "ON WIRE", "STATE"].map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(header).chain(self.rows().map(cells)).collect();
            text.extend(Columns::default().text(&rows).lines().map(|line| format!("  {line}\n")));
        }
        text.extend(self.findings().into_iter().map(|line| format!("{line}\n")));
        text.extend(self.creates.iter().map(|creates| format!("{}\n", creates.text())));
        text.extend(self.on_wire().map(|line| format!("{line}\n")));
        text + "Nothing was changed.\n"
    }

    /// What is not as it should be, and how much that is.
    pub fn short(&self) -> String {
        let refused = self.rows().filter(|row| matches!(row.state, RowState::Refused(_))).count();
        let pending = self.rows().filter(|row| matches!(row.state, RowState::Pending(_))).count();
        let (denials, warnings) = (self.denials.len(), self.warnings.len());
        let counts = format!(
            "{}: {} ok, {pending} pending, {refused} refused, {}, {}",
            self.tap,
            self.tapped(),
            counted(denials, "denial"),
            counted(warnings, "warning")
        );
        let lines: Vec<String> = self.findings().into_iter().chain([counts]).collect();
        lines.join("\n") + "\n"
    }

    fn summary(&self) -> String {
        let verb = match self.exit(false) {
            _ if self.is_observed => "mirrors",
            Exit::Refused | Exit::NotPermitted if !self.exists => "is refused; otherwise, it would mirror",
            _ => "would mirror",
        };
        let pods = match &self.pods {
            Some(rows) => format!("{} of {}", self.tapped(), counted(rows.len(), "pod")),
            None => "the pods".to_owned(),
        };
        let direction = match self.direction {
            Direction::Both => "both directions",
            Direction::Ingress => "frames that enter them",
            Direction::Egress => "frames that leave them",
        };
        let places: Vec<_> = self.destinations.iter().map(place).collect();
        plain(&format!("{} {verb} {pods} of {}, {direction}, to {}", self.tap, self.selection, places.join(", ")))
    }

    /// Refusals with their pages, denials and warnings.
    fn findings(&self) -> Vec<String> {
        let mut refused: BTreeMap<&Cause, Vec<&str>> = BTreeMap::new();
        for row in self.rows() {
            if let RowState::Refused(cause) | RowState::Pending(cause) | RowState::Unknown(cause) = &row.state {
                refused.entry(cause).or_default().push(&row.pod);
            }
        }
        let refused = refused.into_iter().map(|(cause, pods)| format!("{} ({})", message(cause), pods.join(", ")));
        let places = self.destinations.iter().filter_map(|place| {
            let cause = place.refusal.as_ref()?;
            Some(format!("destination {}: {}", place.name, message(cause)))
        });
        let denials = self.denials.iter().map(|denial| {
            let text = format!("denied by {}: {}", denial.by, message(&denial.cause));
            styled(BAD, &plain(&text))
        });
        let warnings = self.warnings.iter().map(|text| format!("{} {}", styled(CAUTION, "warning:"), plain(text)));
        refused.chain(places).map(|text| plain(&text)).chain(denials).chain(warnings).collect()
    }

    /// What the numbers in the table mean.
    fn on_wire(&self) -> Option<String> {
        let family = self.family?;
        let goes_out = self.rows().any(|row| row.wire.leaves_node == Some(true) && row.state == RowState::Ok);
        let rest = match (self.oversize, family) {
            (Oversize::Fragment, Family::IPv4) => "other frames are sent in IP fragments",
            _ => "other frames are truncated",
        };
        goes_out.then(|| {
            format!(
                "On the wire, a frame is {} bytes longer (VXLAN over {family:?}). Beyond the path MTU, TCP is sent in shorter segments, \
                 and {rest}.",
                family.overhead()
            )
        })
    }
}

fn cells(row: &Row) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let state = match &row.state {
        RowState::Ok if row.degraded.is_empty() => "ok".to_owned(),
        RowState::Ok => "ok, frames may be missing".to_owned(),
        RowState::Pending(_) => "pending".to_owned(),
        RowState::Unknown(_) => "unknown".to_owned(),
        RowState::Refused(cause) => format!("refused: {}", cause.reason),
    };
    vec![
        or_dash(row.node.clone()),
        row.pod.clone(),
        or_dash(row.interface.clone()),
        or_dash(row.mtu.map(|mtu| mtu.to_string())),
        row.wire.text(),
        state,
    ]
}

/// A cause with the page of its reason.
fn message(Cause { reason, message }: &Cause) -> String {
    if reason.is_empty() { message.clone() } else { format!("{reason}: {message}. See {}", page_of(reason)) }
}

fn place(place: &Place) -> String {
    let interface = place.interface.as_ref().map(|interface| format!(", interface {interface}")).unwrap_or_default();
    let node = place.node.as_ref().filter(|node| place.to != format!("node {node}"));
    format!("{}{}{interface}", place.to, node.map(|node| format!(" on {node}")).unwrap_or_default())
}

impl Creates {
    fn text(&self) -> String {
        let Self { senders, receivers, vni, vni_range, vnis, helper_pods } = self;
        let vni = match (vni, vni_range) {
            (Some(vni), _) if *vnis == 1 => format!("VNI {vni}"),
            (Some(vni), _) => format!("VNI {vni} and {}", counted(vnis - 1, "other")),
            (None, Some(range)) => format!("{} from {}-{}", counted(*vnis, "VNI"), range.first, range.last),
            (None, None) => counted(*vnis, "VNI"),
        };
        let helpers = match helper_pods {
            None => "helper pods on nodes that have none".to_owned(),
            Some(nodes) if nodes.is_empty() => "no helper pod".to_owned(),
            Some(nodes) => format!("helper pods on {}", nodes.iter().cloned().collect::<Vec<_>>().join(", ")),
        };
        format!(
            "Creates {}, {}, {vni}, {helpers}.",
            counted(*senders, "sender device"),
            counted(*receivers, "receiver device")
        )
    }
}
