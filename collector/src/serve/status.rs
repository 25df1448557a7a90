//! How well the collector sees: what `GET /status` answers.

use serde_json::{Value, json};

use crate::shared::{Shared, State};

/// As JSON.
pub fn status(shared: &Shared) -> Value {
    let State { names, map, newest, status, .. } = &*shared.lock();
    let (flows, incomplete) = newest.completeness();
    json!({
        "live": status.is_live,
        "frames": status.captured.frames,
        "framesDropped": status.captured.dropped,
        "framesLeftOut": status.captured.left_out,
        "captured": status.captured.step.name(),
        "flows": status.counters.flows,
        "flowsEvicted": status.counters.evicted,
        "flowsFolded": map.folded,
        "flowsActive": status.active,
        "eventsWaiting": status.waiting,
        "edges": map.len(),
        "pods": names.pods().len(),
        "namesComplete": names.is_complete(),
        // Of the TCP flows that `GET /flows` has.
        "recentTcpFlows": flows,
        "recentTcpFlowsIncomplete": incomplete,
    })
}
