//! The product, as a user would tap the pod.

use podtap_tests::cluster::Sandbox;
use serde_json::{Value, json};

use crate::stage::Stage;

/// At the receiver.
pub const INTERFACE: &str = "bench-podtap";
const NAME: &str = "bench";

/// A tap of the pod `web`. When dropped, it is deleted, and this is waited for.
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
        // Also deletes one that was accepted and does not become ready.
        let made = Self(&stage.sandbox);
        stage.sandbox.try_apply(&tap.to_string())?;
        stage.sandbox.kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", "podtap", NAME], "")?;
        Ok(made)
    }
}

impl Drop for Tap<'_> {
    fn drop(&mut self) {
        let deleted = self.0.kubectl(&["delete", "podtap", NAME, "--ignore-not-found", "--timeout=30s"], "");
        if let Err(message) = deleted {
            eprintln!("the tap is not deleted: {message}");
        }
    }
}
