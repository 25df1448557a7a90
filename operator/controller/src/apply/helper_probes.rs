//! The probes of a helper pod: commands, which ask over the Unix sockets of the pod.
//!
//! Each runs a process in its container, so they are rare. What hangs is restarted within a minute. That is late enough for a busy node:
//! several probes in a row must go without an answer for eight seconds each.

use k8s_openapi::api::core::v1::{ExecAction, Probe};

use crate::apply::helper_volumes::{PROBE_SOCKET, SOCKET};

/// How long a command may take, in seconds: longer than it waits for an answer.
const TIMEOUT: i32 = 10;
/// How long a container may take to start, in seconds. The tap-helper waits until another one of its node has ended.
const START: i32 = 300;

/// Whether the agent is connected to the tap-helper, and whether it answers at all.
pub fn agent() -> (Probe, Probe) {
    let ready = ["/podtap-agent", "probe", "--socket", PROBE_SOCKET];
    let live = ["/podtap-agent", "probe", "--socket", PROBE_SOCKET, "--live"];
    (probe(&ready, 15, 2), probe(&live, 20, 2))
}

/// Whether the tap-helper answers.
pub fn tap_helper() -> Probe {
    probe(&["/tap-helper", "probe", "--socket", SOCKET], 15, 3)
}

/// The same, each second until it succeeds, so that a pod is Ready as soon as it works.
pub fn startup(probe: &Probe) -> Probe {
    Probe { period_seconds: Some(1), failure_threshold: Some(START), ..probe.clone() }
}

fn probe(command: &[&str], period: i32, failures: i32) -> Probe {
    Probe {
        exec: Some(ExecAction { command: Some(command.iter().map(|word| (*word).to_owned()).collect()) }),
        period_seconds: Some(period),
        timeout_seconds: Some(TIMEOUT),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}
