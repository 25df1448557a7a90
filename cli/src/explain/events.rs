//! The newest events of what is explained.

use std::cmp::Reverse;

use k8s_openapi::{
    api::core::v1::Event,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, api::ListParams};
use serde::Serialize;

use super::said;
use crate::{
    connection::Cluster,
    console::{CAUTION, GOOD, plain, styled},
    exit::Outcome,
    explain::tree::Tree,
    pods::if_permitted,
};

/// The API server keeps events for an hour, and one object has few.
const MOST: u32 = 500;

/// What events are about.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub kind: &'static str,
    /// None for objects of the cluster, whose events are in `default`.
    pub namespace: Option<String>,
    pub name: String,
    /// None: whichever it is, also an earlier one of the same name.
    pub uid: Option<String>,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Occurrence {
    /// When it was seen last.
    time: Option<Timestamp>,
    #[serde(rename = "type")]
    kind: String,
    reason: String,
    message: String,
    /// How often.
    count: i32,
}

/// The newest events about objects; none if the user may not list them.
pub async fn read(cluster: &Cluster, about: &[About], most: usize) -> Outcome<Option<Vec<Occurrence>>> {
    let mut all = Vec::new();
    for About { kind, namespace, name, uid } in about {
        let api: Api<Event> = Api::namespaced(cluster.client.clone(), namespace.as_deref().unwrap_or("default"));
        let uid = uid.as_ref().map(|uid| format!(",involvedObject.uid={uid}")).unwrap_or_default();
        let fields = format!("involvedObject.kind={kind},involvedObject.name={name}{uid}");
        let parameters = ListParams::default().fields(&fields).limit(MOST);
        let Some(listed) = if_permitted(api.list(&parameters).await)? else { return Ok(None) };
        all.extend(listed.items);
    }
    Ok(Some(newest(all, most)))
}

/// The newest of them, which come first.
fn newest(events: Vec<Event>, most: usize) -> Vec<Occurrence> {
    let mut all: Vec<_> = events.into_iter().map(occurrence).collect();
    all.sort_by_key(|event| Reverse(event.time));
    all.truncate(most);
    all
}

fn occurrence(event: Event) -> Occurrence {
    // Recorders of events.k8s.io and older ones fill in different fields.
    let series = event.series.as_ref();
    let last = series.and_then(|series| series.last_observed_time.as_ref()).or(event.event_time.as_ref());
    let time = last.map(|time| time.0).max(event.last_timestamp.or(event.first_timestamp).map(|time| time.0));
    Occurrence {
        time,
        kind: plain(&event.type_.unwrap_or_default()),
        reason: plain(&event.reason.unwrap_or_default()),
        message: plain(&event.message.unwrap_or_default()),
        count: series.and_then(|series| series.count).or(event.count).unwrap_or(1).max(1),
    }
}

/// For people.
pub fn tree(events: Option<&[Occurrence]>, now: Timestamp) -> Option<Tree> {
    let Some(events) = events else { return Some(Tree::new("events: you may not list them")) };
    let line = |event: &Occurrence| {
        let style = if event.kind == "Warning" { CAUTION } else { GOOD };
        let age = event.time.map(|time| format!(" {} ago", age(now.duration_since(time)))).unwrap_or_default();
        let count = if event.count > 1 { format!(", {} times", event.count) } else { String::new() };
        Tree::new(format!("{}{age}{count}{}", styled(style, &event.reason), said(&event.message)))
    };
    (!events.is_empty()).then(|| Tree::new("events").with(events.iter().map(line)))
}

/// In the largest unit of which it has several, as kubectl has it.
fn age(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(reason: &str, fields: &Value) -> Event {
        let mut event =
            json!({"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": reason, "message": "m"});
        for (name, value) in fields.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        serde_json::from_value(event).expect("an event")
    }

    #[test]
    fn the_newest_events_whoever_recorded_them() {
        let events = vec![
            event(
                "Old",
                &json!({"firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:10:00Z", "count": 3}),
            ),
            event("Oldest", &json!({"eventTime": "2026-01-01T00:00:00.000000Z"})),
            event(
                "New",
                &json!({"eventTime": "2026-01-01T00:00:00.000000Z",
                    "series": {"count": 2, "lastObservedTime": "2026-01-01T01:00:00.000000Z"}}),
            ),
        ];
        let newest = newest(events, 2);
        let now = "2026-01-01T01:01:30Z".parse().expect("a time");
        let text = tree(Some(&newest), now).expect("there are some").text();
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(text, "events\n├─ New 90s ago, 2 times: m\n└─ Old 51m ago, 3 times: m\n");
        assert!(tree(Some(&[]), now).is_none());
        assert!(tree(None, now).expect("a line").text().contains("you may not list them"));
    }

    #[test]
    fn ages() {
        for (seconds, text) in [(-3, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")] {
            assert_eq!(age(SignedDuration::from_secs(seconds)), text);
        }
    }
}
