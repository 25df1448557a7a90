use std::time::SystemTime;

use podtap_model::{DesiredUpdate, IpNet, NodeState, Pod, PodDetails, Program, Receiver, Tap, UnixTime};

/// The desired state of a node, with the tap repeated in each of its senders, which is easier to modify in tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Generation of the `NodeTap`.
    pub generation: i64,
    /// Tapped pods.
    pub senders: Vec<Sender>,
    /// Receivers.
    pub receivers: Vec<Receiver>,
    /// Networks from which they accept mirrored frames.
    pub sources: Vec<IpNet>,
    /// MTU between the nodes.
    pub underlay_mtu: Option<u32>,
    /// How long senders mirror without being renewed.
    pub orphan_timeout_seconds: Option<u32>,
    /// The EtherType of probes, if not the default.
    pub probe_ether_type: Option<podtap_model::EtherType>,
}

/// One pod under one tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The tap. It must be equal in all senders of one tap.
    pub tap: Tap,
    /// The pod.
    pub pod: Pod,
    /// What metadata tell of it.
    pub details: Option<PodDetails>,
    /// The compiled expression of the tap's filter.
    pub program: Option<Program>,
}

/// UID of the `NodeTap` of all tests.
pub const NODE_TAP: &str = "node-tap";

impl Desired {
    /// The spec of a `NodeTap`.
    ///
    /// # Panics
    /// When senders of one tap differ in it.
    #[must_use]
    pub fn state(&self) -> NodeState {
        let Self { underlay_mtu, orphan_timeout_seconds, probe_ether_type, .. } = *self;
        let mut state = NodeState { underlay_mtu, orphan_timeout_seconds, probe_ether_type, ..NodeState::default() };
        for Sender { tap, pod, details, program } in &self.senders {
            let program_id = program.as_ref().map(|program| program.id.clone());
            let tap = Tap { program: program_id, ..tap.clone() };
            match state.taps.iter().find(|known| known.uid == tap.uid) {
                Some(known) => assert_eq!(*known, tap, "all senders of a tap share it"),
                None => state.taps.push(tap.clone()),
            }
            state.programs.extend(program.clone().filter(|program| !state.programs.contains(program)));
            state.senders.push(podtap_model::Sender { tap: tap.uid, pod: pod.clone(), details: details.clone() });
        }
        state.receivers.clone_from(&self.receivers);
        state.sources.clone_from(&self.sources);
        state
    }

    /// The update that the agent sends when the API server has confirmed the desired state.
    ///
    /// # Panics
    /// See [`Self::state`].
    #[must_use]
    pub fn update(&self) -> DesiredUpdate {
        let spec = serde_json::to_value(self.state()).expect("a node state is JSON");
        DesiredUpdate { uid: Some(NODE_TAP.to_owned()), generation: self.generation, now: Some(now()), spec }
    }
}

/// The API server's clock: that of this machine.
#[must_use]
pub fn now() -> UnixTime {
    SystemTime::now().into()
}
