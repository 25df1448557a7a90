//! Where PodTap is installed, and how its objects are found.

use kube::api::ListParams;

/// Where PodTap is installed.
#[derive(clap::Args, Clone, Debug)]
pub struct InstallationFlags {
    /// Namespace of PodTap
    #[arg(long, value_name = "NAME", default_value = "podtap-system")]
    pub podtap_namespace: String,
}

/// Label of all objects of PodTap.
pub const OWN: &str = "app.kubernetes.io/name=podtap";

/// Labels of the objects of a component, as the chart and the controller set them.
pub fn labels_of(component: &str) -> String {
    format!("{OWN},app.kubernetes.io/component={component}")
}

/// All objects of a component.
pub fn component(name: &str) -> ListParams {
    ListParams::default().labels(&labels_of(name))
}
