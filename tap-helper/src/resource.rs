//! The resources of a node, by their identity.

use podtap_model::{DesiredSender, Receiver};

/// Identity of a sender.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SenderKey {
    /// UID of the tap.
    pub tap: String,
    /// UID of the pod.
    pub pod: String,
}

impl SenderKey {
    /// That of a requested sender.
    #[must_use]
    pub fn of(sender: &DesiredSender) -> Self {
        Self { tap: sender.tap.uid.to_string(), pod: sender.pod.uid.to_string() }
    }
}

/// What an action is for. Failures of one resource do not affect the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A sender.
    Sender(SenderKey),
    /// A receiver: UID of its tap, and its VNI.
    Receiver(String, u32),
    /// A resource of ours whose mark does not name its owner.
    Leftover,
}

impl Resource {
    /// A requested sender.
    #[must_use]
    pub fn sender(sender: &DesiredSender) -> Self {
        Self::Sender(SenderKey::of(sender))
    }

    /// A requested receiver.
    #[must_use]
    pub fn receiver(receiver: &Receiver) -> Self {
        Self::Receiver(receiver.tap.uid.to_string(), receiver.vni.get())
    }
}
