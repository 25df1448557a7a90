use super::*;
use crate::Reason;

fn sender(tap: &str, pod: &str, state: State, reason: Reason) -> SenderStatus {
    SenderStatus {
        tap_uid: tap.to_owned(),
        pod_uid: pod.to_owned(),
        interface: None,
        addresses: Vec::new(),
        state,
        reason,
        message: String::new(),
        degraded: Vec::new(),
    }
}

fn receiver(vni: u32, state: State, reason: Reason) -> ReceiverStatus {
    ReceiverStatus {
        tap_uid: "tap-2".to_owned(),
        vni,
        state,
        reason,
        message: "port 14790 is in use".to_owned(),
        pods_with_probes: vec![],
        pods_without_full_size_probes: vec![],
    }
}

/// The status of a node with two senders and a receiver.
fn status(desired: &DesiredState) -> NodeStatus {
    let active = SenderStatus {
        interface: Some("eth0".to_owned()),
        degraded: vec!["filter.expression needs eBPF".to_owned()],
        ..sender("tap-1", "pod-1", State::Active, Reason::AsExpected)
    };
    let pending = sender("tap-3", "pod-3", State::Pending, Reason::PodNotRunning);
    let features = [("ebpf".to_owned(), true)].into();
    desired.status(vec![pending, active], vec![receiver(78, State::Failed, Reason::PortInUse)], features)
}

fn refused_sender(tap: &str, pod: &str) -> SenderStatus {
    sender(tap, pod, State::Refused, Reason::InvalidSpec)
}

#[test]
fn the_status_of_a_node_in_json() {
    let status = status(&DesiredState { generation: 12, ..DesiredState::default() });
    let json = serde_json::json!({
        "observedGeneration": 12,
        "activeSenders": 1,
        "activeReceivers": 0,
        "senders": [
            {"tapUid": "tap-1", "podUid": "pod-1", "interface": "eth0", "state": "Active", "reason": "AsExpected",
             "degraded": ["filter.expression needs eBPF"]},
            {"tapUid": "tap-3", "podUid": "pod-3", "state": "Pending", "reason": "PodNotRunning"},
        ],
        "receivers": [
            {"tapUid": "tap-2", "vni": 78, "state": "Failed", "reason": "PortInUse", "message": "port 14790 is in use"},
        ],
        "features": {"ebpf": true},
    });
    assert_eq!(serde_json::to_value(&status).expect("JSON"), json);
    assert_eq!(serde_json::from_value::<NodeStatus>(json).expect("a status"), status);
}

#[test]
fn refused_entries_join_in_order() {
    let desired = DesiredState {
        refused_senders: vec![refused_sender("tap-2", "pod-9")],
        refused_receivers: vec![receiver(5, State::Refused, Reason::InvalidSpec)],
        ..DesiredState::default()
    };
    let status = status(&desired);
    let senders: Vec<_> = status.senders.iter().map(|sender| sender.tap_uid.as_str()).collect();
    let receivers: Vec<_> = status.receivers.iter().map(|receiver| receiver.vni).collect();
    assert_eq!((senders, receivers), (vec!["tap-1", "tap-2", "tap-3"], vec![5, 78]));
    assert_eq!((status.active_senders, status.active_receivers), (1, 0));
}

#[test]
fn a_refused_entry_that_still_exists_is_reported_as_what_exists() {
    let desired = DesiredState {
        refused_senders: vec![refused_sender("tap-1", "pod-1")],
        refused_receivers: vec![receiver(78, State::Refused, Reason::InvalidSpec)],
        ..DesiredState::default()
    };
    assert_eq!(status(&desired), status(&DesiredState::default()));
}

#[test]
fn the_texts_of_a_node_on_which_everything_fails_are_bounded() {
    let length = |status: &NodeStatus| status.senders.iter().map(|sender| sender.message.len()).sum::<usize>();
    let failed = |number: usize| SenderStatus {
        message: "„Netlink“ ".repeat(100),
        ..sender("tap-1", &format!("pod-{number:04}"), State::Failed, Reason::KernelError)
    };
    let status =
        |count: usize| DesiredState::default().status((0..count).map(failed).collect(), Vec::new(), BTreeMap::new());
    assert_eq!(status(10).senders[9], failed(9), "few are reported as they are");
    let many = status(2000);
    assert!(length(&many) <= MAX_STATUS_TEXT, "{}", length(&many));
    assert!(many.senders.iter().all(|sender| sender.message.starts_with("„Netlink“ „Netlink“ ")));
    assert!(length(&status(200_000)) <= MAX_STATUS_TEXT, "less than a byte each");
}
