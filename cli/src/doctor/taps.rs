//! What else taps report.

use std::collections::BTreeMap;

use podtap_api::{CONDITION_DEGRADED, CONDITION_DELIVERING};
use podtap_model::Reason;

use super::{
    named, network,
    report::{Finding, Group},
    snapshot::Snapshot,
    unread,
};
use crate::{
    console::counted,
    exit::{page, page_of},
    tap::Tap,
};

/// Reasons that a user has chosen, or that end by themselves.
const EXPECTED: [Reason; 4] = [Reason::Suspended, Reason::Expired, Reason::Pending, Reason::NoPodsMatch];

/// The findings about them.
pub fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let taps = match &snapshot.taps {
        Ok(taps) => taps,
        Err(message) => return vec![unread(Group::Taps, "taps", message)],
    };
    // By reason, message and whether it is only a warning: one reason may have several messages.
    let mut causes: BTreeMap<(&str, &str, bool), Vec<String>> = BTreeMap::new();
    let mut good = 0;
    let mut unseen = Vec::new();
    for tap in taps {
        let Some(ready) = tap.ready() else {
            unseen.push(tap.to_string());
            continue;
        };
        let degraded = tap.condition(CONDITION_DEGRADED).filter(|condition| condition.status == "True");
        if let Some(condition) = degraded {
            causes.entry((&condition.reason, &condition.message, true)).or_default().push(tap.to_string());
        }
        if ready.status == "True" {
            good += usize::from(degraded.is_none());
        } else if !is_about_network(tap) {
            let is_expected = EXPECTED.iter().any(|reason| reason.as_str() == ready.reason);
            causes.entry((&ready.reason, &ready.message, is_expected)).or_default().push(tap.to_string());
        }
    }
    let finding = |((reason, message, is_warning), names): ((&str, &str, bool), Vec<String>)| {
        let level = if is_warning { Finding::warning } else { Finding::error };
        level(Group::Taps, format!("{}: {reason}: {message}", named("", &names))).page(page_of(reason))
    };
    let mut findings: Vec<_> = causes.into_iter().map(finding).collect();
    if !unseen.is_empty() {
        let text = format!("{}: no controller has seen the current spec", named("", &unseen));
        findings.push(Finding::warning(Group::Taps, text).page(page("troubleshooting.md", "no-conditions-at-all")));
    }
    let kept = |tap: &Tap| Some(Finding::ok(Group::Taps, format!("{tap} {}", tap.how_to_continue()?)));
    findings.extend(taps.iter().filter_map(kept));
    if good > 0 || taps.is_empty() {
        findings.push(Finding::ok(Group::Taps, format!("{} Ready", counted(good, "tap"))));
    }
    findings
}

/// Whether [`network::check`] tells of it.
fn is_about_network(tap: &Tap) -> bool {
    let condition = tap.condition(CONDITION_DELIVERING).filter(|condition| condition.status == "False");
    let ready = tap.ready().map(|ready| ready.reason.as_str());
    condition.is_some_and(|condition| {
        Some(condition.reason.as_str()) == ready
            && network::REASONS.iter().any(|reason| reason.as_str() == condition.reason)
    })
}
