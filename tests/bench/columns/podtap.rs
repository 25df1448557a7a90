//! PodTap, as users tap a pod.

use podtap_tests::cluster::Sandbox;
use serde_json::{Value, json};

use crate::stage::Stage;

/// The interface at the receiver.
pub const INTERFACE: &str = "bench-podtap";
const NAME: &str = "bench";

/// A tap of the pod `web`. Deleted when dropped, which waits until that is done.
pub struct Tap<'a>(&'a Sandbox);

impl<'a> Tap<'a> {
    pub fn begin(stage: &'a Stage, fields: &Value, destination: &Value) -> Result<Self, String> {
        let mut to = json!({"node": {"name": "n2", "interfaceName": INTERFACE}});
        let mut spec = json!({"targets": {"podNames": ["web"]}});
        for (whole, fields) in [(&mut to, destination), (&mut spec, fields)] {
            for (name, value) in fields.as_object().into_iter().flatten() {
                whole[name] = value.clone();
            }
        }
        spec["destinations"] = json!([to]);
        let tap = json!({
            "apiVersion": "podtap.dev/v1alpha1", "kind": "PodTap", "metadata": {"name": NAME}, "spec": spec,
        });
        // Created before the tap, so that it is deleted even if it does not become ready.
        let tap_guard = Self(&stage.sandbox);
        stage.sandbox.try_apply(&tap.to_string())?;
        stage.sandbox.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "podtap", NAME], "")?;
        Ok(tap_guard)
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        let deleted = self.0.kubectl(&["delete", "podtap", NAME, "--ignore-not-found", "--timeout=60s"], "");
        if let Err(message) = deleted {
            eprintln!("the tap cannot be deleted: {message}");
        }
    }
}
