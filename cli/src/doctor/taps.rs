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
    let mut causes: BTreeMap<(String, bool), (Vec<String>, &str)> = BTreeMap::new();
    let mut good = 0;
    let mut unseen = Vec::new();
    for tap in taps {
        let Some(ready) = tap.ready() else {
            unseen.push(tap.to_string());
            continue;
        };
        let degraded = tap.condition(CONDITION_DEGRADED).filter(|condition| condition.status == "True");
        if let Some(condition) = degraded {
            let (names, _) = causes.entry((condition.reason.clone(), true)).or_insert((Vec::new(), &condition.message));
            names.push(tap.to_string());
        }
        if ready.status == "True" {
            good += usize::from(degraded.is_none());
        } else if !is_about_network(tap) {
            let is_expected = EXPECTED.iter().any(|reason| reason.as_str() == ready.reason);
            let (names, _) = causes.entry((ready.reason.clone(), is_expected)).or_insert((Vec::new(), &ready.message));
            names.push(tap.to_string());
        }
    }
    let finding = |((reason, is_warning), (names, message)): ((String, bool), (Vec<String>, &str))| {
        let level = if is_warning { Finding::warning } else { Finding::error };
        level(Group::Taps, format!("{}: {reason}: {message}", named("", &names))).page(page_of(&reason))
    };
    let mut findings: Vec<_> = causes.into_iter().map(finding).collect();
    if !unseen.is_empty() {
        let text = format!("{}: no controller has seen the current spec", named("", &unseen));
        findings.push(Finding::warning(Group::Taps, text).page(page("troubleshooting.md", "no-conditions-at-all")));
    }
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
