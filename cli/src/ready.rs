//! Waiting until a tap mirrors, and telling what it mirrors.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use kube::ResourceExt as _;
use podtap_api::PodTapStatus;
use podtap_model::Reason;

use crate::{
    connection::Cluster,
    console::{Console, counted},
    exit::{Exit, Failure, Outcome, page_of},
    pods::{Surroundings, Verdict, matching, verdict},
    tap::Tap,
    wait::{Progress, Waiting, Why, progress, until},
};

/// Waits until a tap is Ready, and reports a line per node.
pub async fn wait_until_ready(
    cluster: &Cluster,
    tap: Tap,
    limit: Duration,
    console: Console,
    report: impl Fn(&str),
) -> Outcome {
    let mut waiting = Waiting::new(console);
    let mut last = None;
    let end = until(cluster, &tap, limit, |current| {
        let Some(current) = current else { return ControlFlow::Break(Err("the tap was deleted".to_owned())) };
        match progress(current) {
            Progress::Ready => return ControlFlow::Break(Ok((current.clone(), None))),
            Progress::Partly(why) => return ControlFlow::Break(Ok((current.clone(), Some(why)))),
            Progress::Suspended(why) => return ControlFlow::Break(Err(format!("{current} is suspended: {why}"))),
            Progress::Refused(why) => {
                return ControlFlow::Break(Err(format!("{current} stays, and is not Ready: {}", why.with_page())));
            }
            Progress::Waiting(why) => {
                waiting.reports(why.to_string());
                last = Some(why);
            }
        }
        ControlFlow::Continue(())
    })
    .await?;
    match end {
        Some(Ok((tap, None))) => ready(cluster, &tap, report).await,
        Some(Ok((tap, Some(why)))) => {
            ready(cluster, &tap, report).await?;
            Err(Failure::new(Exit::Partly, format!("{tap} taps only some of its pods: {}", why.with_page())))
        }
        Some(Err(message)) => Err(Failure::new(Exit::Refused, message)),
        None => Err(late(&tap, limit, last)),
    }
}

fn late(tap: &Tap, limit: Duration, last: Option<Why>) -> Failure {
    let is_empty = [Reason::NoPodsMatch, Reason::PodNotFound, Reason::AllPodsSkipped];
    match last {
        Some(why) if is_empty.iter().any(|reason| reason.as_str() == why.reason) => {
            Failure::new(Exit::Refused, format!("{tap} stays, and taps pods as they are created: {}", why.with_page()))
        }
        Some(why) => {
            let seconds = limit.as_secs();
            Failure::new(
                Exit::TimedOut,
                format!("{tap} is not Ready after {seconds} s, and stays: {}", why.with_page()),
            )
        }
        None => Failure::new(Exit::TimedOut, format!("{tap}: the API server has not answered in time")),
    }
}

/// Reports what is mirrored.
async fn ready(cluster: &Cluster, tap: &Tap, report: impl Fn(&str)) -> Outcome {
    let status = tap.status().cloned().unwrap_or_default();
    let tapped = usize::try_from(status.tapped_pods).unwrap_or_default();
    // An established tap stays Ready while no pod matches.
    if tapped == 0 {
        let why = tap.ready().map(|ready| ready.message.as_str()).unwrap_or_default();
        return Err(Failure::new(Exit::Refused, format!("{tap} taps no pod now: {why}")));
    }
    let around = Surroundings::read(cluster).await?;
    let listed = matching(cluster, tap).await?;
    let pods: Vec<_> = listed.iter().flatten().filter(|pod| verdict(tap, pod, &around) == Verdict::Tapped).collect();
    if pods.len() == tapped {
        let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            nodes.entry(node).or_default().push(pod.name_any());
        }
        for (node, pods) in nodes {
            report(&format!("{node}: {} -> {}", pods.join(", "), status.destination));
        }
    } else {
        // With the right to list them, the user may still not read which ones they are, or that has just changed.
        let hint = if listed.is_some() { "" } else { " (you may not list pods)" };
        report(&format!("{} -> {}{hint}", counted(tapped, "pod"), status.destination));
    }
    let refused = refused(&status);
    for line in &refused {
        report(line);
    }
    Ok(if refused.is_empty() { Exit::Done } else { Exit::Partly })
}

/// The pods of a tap that is Ready that are not tapped, except those that have ended or are its destinations.
fn refused(status: &PodTapStatus) -> Vec<String> {
    let is_meant = |reason: Reason| matches!(reason, Reason::PodFinished | Reason::DestinationIsTarget);
    let skipped = status.skipped.iter().filter(|skipped| !is_meant(skipped.reason)).map(|skipped| {
        let (names, reason) = (skipped.pods.join(", "), skipped.reason);
        let count = counted(usize::try_from(skipped.count).unwrap_or_default(), "pod");
        format!("not tapped: {count} ({names}), {reason}. See {}", page_of(reason.as_str()))
    });
    let failures = status.failures.iter().map(|failure| {
        format!(
            "not tapped: {} ({}): {}. See {}",
            failure.pod,
            failure.reason,
            failure.message,
            page_of(failure.reason.as_str())
        )
    });
    skipped.chain(failures).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_that_have_ended_and_destinations_are_not_refused() {
        let skipped = |reason: &str| json!({"reason": reason, "count": 1, "pods": ["a"]});
        let lines = |status| refused(&serde_json::from_value(status).expect("a status"));
        assert!(lines(json!({"skipped": [skipped("PodFinished"), skipped("DestinationIsTarget")]})).is_empty());
        assert_eq!(lines(json!({"skipped": [skipped("HostNetwork")]})).len(), 1);
        let failures = lines(json!({"failures": [{"pod": "b", "reason": "InterfaceNotFound", "message": "no net1"}]}));
        assert!(failures[0].starts_with("not tapped: b (InterfaceNotFound): no net1. See https://"), "{failures:?}");
    }
}
