//! The controller's settings, changed for one test.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE},
    wait::until,
};

const DEPLOYMENT: &str = "deployment/podtap-controller";

/// An environment variable of the controller. It gets its previous value when this is dropped. For tests that hold `Cluster::alone`.
pub struct Setting {
    name: &'static str,
    previous: Option<String>,
}

impl Setting {
    /// Returns when a controller with the new value leads.
    pub fn set(name: &'static str, value: &str) -> Self {
        let this = Self { name, previous: value_of(name) };
        change(name, Some(value));
        this
    }

    /// The value before the test.
    pub fn previous(&self) -> Option<&str> {
        self.previous.as_deref()
    }

    /// Restores the previous value before the test ends. Returns when a controller with that value leads.
    pub fn restore(self) {
        drop(self);
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        change(self.name, self.previous.as_deref());
    }
}

fn value_of(name: &str) -> Option<String> {
    let deployment: Deployment = Cluster::lab().get(PODTAP_NAMESPACE, "podtap-controller").expect("it is installed");
    let spec = deployment.spec.and_then(|spec| spec.template.spec).expect("a deployment has a template");
    let variables = spec.containers.into_iter().flat_map(|container| container.env.unwrap_or_default());
    variables.into_iter().find(|variable| variable.name == name)?.value
}

fn change(name: &str, value: Option<&str>) {
    let lab = Cluster::lab();
    let change = value.map_or_else(|| format!("{name}-"), |value| format!("{name}={value}"));
    lab.kubectl(&["-n", PODTAP_NAMESPACE, "set", "env", DEPLOYMENT, &change], "").expect("a variable can be set");
    lab.kubectl(&["-n", PODTAP_NAMESPACE, "rollout", "status", DEPLOYMENT, "--timeout=120s"], "")
        .expect("the controllers start");
    until("one of the new controllers leads", Duration::from_secs(60), || {
        let pods: Vec<k8s_openapi::api::core::v1::Pod> = lab.list(PODTAP_NAMESPACE);
        let leader = leader().ok_or("none leads")?;
        let is_it = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.metadata.name.as_deref() == Some(&leader) && pod.metadata.deletion_timestamp.is_none()
        };
        if pods.iter().any(is_it) { Ok(()) } else { Err("a previous one leads") }
    });
}

/// The name of the pod that leads.
pub fn leader() -> Option<String> {
    let leases: Vec<Lease> = Cluster::lab().list(PODTAP_NAMESPACE);
    leases.into_iter().find_map(|lease| lease.spec?.holder_identity).filter(|holder| !holder.is_empty())
}

/// The node of the leader.
pub fn leaders_node() -> Option<String> {
    let pod = Cluster::lab().get::<Pod>(PODTAP_NAMESPACE, &leader()?)?;
    pod.metadata.deletion_timestamp.is_none().then_some(pod.spec?.node_name).flatten()
}

/// The value of one of the leader's metrics without labels.
pub fn metric(name: &str) -> Option<u64> {
    let path = format!("/api/v1/namespaces/{PODTAP_NAMESPACE}/pods/{}:8080/proxy/metrics", leader()?);
    let text = Cluster::lab().kubectl(&["get", "--raw", &path], "").ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
