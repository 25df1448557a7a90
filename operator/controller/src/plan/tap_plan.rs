//! What the plan means for one tap.

use std::net::SocketAddr;

use podtap_model::{FrameFormat, InterfaceName, MirrorOptions, Program, Vni};

use crate::{
    failure::Failure,
    plan::{destinations::ResolvedDestination, targets::Targets},
    validate::{state::TapState, tap::Tap},
};

/// One destination of a tap.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedDestination {
    /// Name of the destination in the spec.
    pub name: String,
    /// For `kubectl get`.
    pub text: String,
    /// Name of the receiver's interface, for a node or a pod, once it is known.
    pub interface: Option<InterfaceName>,
    pub frame_format: FrameFormat,
    /// Whether probes may be sent to it.
    pub is_probed: bool,
    /// What happens to metadata that is sent to it.
    pub metadata: MetadataUse,
    /// Whether its pod is handed a packet socket.
    pub packet_socket: bool,
    pub vni: Option<Vni>,
    /// Where it is, once that is known.
    pub resolved: Option<ResolvedDestination>,
    /// Where mirrored frames are sent. Unset if none are.
    pub endpoint: Option<SocketAddr>,
    /// Why the destination is not ready.
    pub failure: Option<Failure>,
}

/// What happens to metadata that is sent to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataUse {
    /// Its consumers read it.
    Wanted,
    /// Its receiver drops it.
    Dropped,
    /// Nothing drops it there, and its owner has not asked for it.
    Refused,
}

/// The plan for one tap.
#[derive(Clone, Debug)]
pub struct TapPlan<'a> {
    pub tap: &'a Tap,
    pub state: TapState,
    pub targets: Targets,
    /// In the order of the spec.
    pub destinations: Vec<PlannedDestination>,
    /// The VNI of the tap.
    pub vni: Option<Vni>,
    pub options: MirrorOptions,
    /// The program of the filter expression.
    pub program: Option<Program>,
}

impl<'a> TapPlan<'a> {
    /// A tap for which nothing is resolved.
    pub fn unresolved(tap: &'a Tap, destinations: Vec<PlannedDestination>) -> Self {
        Self {
            tap,
            state: tap.state.clone(),
            targets: Targets::default(),
            destinations,
            vni: None,
            options: MirrorOptions::default(),
            program: None,
        }
    }

    /// Whether its senders send probes. A sender sends each frame to all of its destinations.
    pub fn sends_probes(&self) -> bool {
        self.destinations.iter().all(|destination| destination.is_probed)
    }

    /// Whether its senders send metadata. Likewise.
    pub fn sends_metadata(&self) -> bool {
        let is = |metadata| self.destinations.iter().any(|destination| destination.metadata == metadata);
        is(MetadataUse::Wanted) && !is(MetadataUse::Refused)
    }

    /// Whether any node has to do something for it.
    pub fn is_executed(&self) -> bool {
        self.state == TapState::Active && self.destinations.iter().any(|destination| destination.endpoint.is_some())
    }
}
