//! What the plan means for one tap.

use std::net::SocketAddr;

use k8s_openapi::jiff::Timestamp;
use podtap_model::{FrameFormat, InterfaceName, MirrorOptions, Program, UnixTime, Vni};

use crate::{
    failure::Failure,
    plan::{destinations::ResolvedDestination, expiry::recorded_start, targets::Targets},
    validate::tap::Tap,
};

/// Whether a tap is carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum TapState {
    /// Carried out, as far as its targets and destinations allow.
    Active,
    /// Suspended.
    Suspended(SuspendedBy),
    /// Its duration is over.
    Expired,
    /// Not carried out at all.
    Refused(Failure),
}

/// What suspends a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendedBy {
    /// `suspendAll` of the policy, whatever the tap has.
    Policy,
    /// `suspend` of the tap.
    Tap,
}

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
    pub vni: Option<Vni>,
    /// Where it is, once that is known.
    pub resolved: Option<ResolvedDestination>,
    /// Where mirrored frames are sent. Unset if none are.
    pub endpoint: Option<SocketAddr>,
    /// Why the destination is not ready.
    pub failure: Option<Failure>,
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
    /// When its first pod was tapped.
    pub start: Option<Timestamp>,
    /// When the nodes stop mirroring even if no controller runs.
    pub expiration: Option<UnixTime>,
}

impl<'a> TapPlan<'a> {
    /// A tap without anything to carry out.
    pub fn refused(tap: &'a Tap, failure: Failure) -> Self {
        Self {
            tap,
            state: TapState::Refused(failure),
            targets: Targets::default(),
            destinations: Vec::new(),
            vni: None,
            options: MirrorOptions::default(),
            program: None,
            start: recorded_start(tap),
            expiration: None,
        }
    }

    /// Whether any node has to do something for it.
    pub fn is_executed(&self) -> bool {
        self.state == TapState::Active && self.destinations.iter().any(|destination| destination.endpoint.is_some())
    }
}
