//! The configuration of a node's components.

use serde_json::{Value, json};

use crate::addresses::{DNS_SERVICE, POD_RANGE, pod_subnet};
use crate::state::Lab;

/// The properties of the machine that a node's configuration depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Whether processes here may lower their OOM score (`CAP_SYS_RESOURCE`).
    pub may_lower_oom_score: bool,
    /// Whether the state is on overlayfs, which cannot hold another overlay's upper layer.
    pub on_overlayfs: bool,
}

impl Machine {
    /// How containerd stores the layers of images: `overlayfs`, or copies if that is impossible.
    pub fn snapshotter(self) -> &'static str {
        if self.on_overlayfs { "native" } else { "overlayfs" }
    }
}

/// Whether a process with this `/proc/PID/status` has `CAP_SYS_RESOURCE`.
pub fn has_sys_resource(status: &str) -> bool {
    const SYS_RESOURCE: u32 = 24;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    effective.is_some_and(|set| set >> SYS_RESOURCE & 1 == 1)
}

/// containerd's configuration.
pub fn containerd(machine: Machine) -> String {
    let snapshotter = machine.snapshotter();
    // runc gives a pod's first process a score below its own; where that is not allowed, every pod would fail with
    // "can't get final child's PID from pipe: EOF".
    let restrict = !machine.may_lower_oom_score;
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "podtap.dev/pause:1"
  restrict_oom_score_adj = {restrict}
  # A profile would be loaded into the machine's kernel, not into the node's.
  disable_apparmor = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// The network of a node's pods: a bridge, and a route to the other nodes' pods through the node itself.
pub fn cni(number: u8) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pod_subnet(number) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// kubelet's configuration.
pub fn kubelet(lab: &Lab, node: &str, cgroup_root: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        // Kubelet refuses cgroups v1 by default.
        "failCgroupV1": false,
        // There may be no systemd, and there is none that manages this node.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "cgroupsPerQOS": true,
        // Kubelet has not created the node's root, and limits on it would also limit what others start there.
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        // A lower score needs CAP_SYS_RESOURCE, and the lab should not survive at the expense of other programs.
        "oomScoreAdj": 0,
        // Raising the limit above the machine's needs CAP_SYS_RESOURCE as well.
        "maxOpenFiles": 20000,
        // All nodes and the rest of the machine share the disk: its use must not evict pods or images.
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": { "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%" },
        // Pods cannot reach the machine's resolver.
        "resolvConf": "",
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "address": "0.0.0.0",
        "readOnlyPort": 0,
        "tlsCertFile": lab.pki(&format!("{node}.crt")),
        "tlsPrivateKeyFile": lab.pki(&format!("{node}.key")),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true, "cacheTTL": "5s" },
            "x509": { "clientCAFile": lab.pki("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "staticPodPath": lab.node(node).join("manifests"),
        "fileCheckFrequency": "1s",
        // Tests wait for this: a lost node has to be noticed before they time out.
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 10,
        "syncFrequency": "10s",
        "serializeImagePulls": false,
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "eventRecordQPS": 50,
        "eventBurst": 100,
        // More than its subnet has addresses.
        "maxPods": 260,
    })
}

/// kube-proxy's configuration.
pub fn kube_proxy(lab: &Lab, node: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": node,
        "oomScoreAdj": 0,
        "clientConnection": { "kubeconfig": lab.pki("kube-proxy.kubeconfig") },
        // Zero leaves them unchanged: they cannot be written in another network namespace.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "iptables": { "minSyncPeriod": "100ms" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn lab() -> Lab {
        Lab { root: PathBuf::from("/c"), state: PathBuf::from("/c/target/lab"), id: "podtap-test".into() }
    }

    #[test]
    fn a_capability_is_read_from_the_effective_set() {
        assert!(has_sys_resource("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_resource("CapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n"));
        assert!(!has_sys_resource(""));
    }

    #[test]
    fn the_oom_score_is_restricted_only_where_it_must_be() {
        let machine = |may_lower_oom_score| Machine { may_lower_oom_score, on_overlayfs: false };
        assert!(containerd(machine(false)).contains("restrict_oom_score_adj = true"));
        assert!(containerd(machine(true)).contains("restrict_oom_score_adj = false"));
    }

    #[test]
    fn overlays_are_not_stacked() {
        let machine = Machine { may_lower_oom_score: true, on_overlayfs: true };
        assert!(containerd(machine).contains("snapshotter = \"native\""));
    }

    #[test]
    fn each_node_has_its_own_pods_cgroups_and_certificate() {
        assert_eq!(cni(2)["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.1.0/24");
        let kubelet = kubelet(&lab(), "n2", "/podtap-test/n2");
        assert_eq!(kubelet["cgroupRoot"], "/podtap-test/n2");
        assert_eq!(kubelet["tlsCertFile"], "/c/target/lab/pki/n2.crt");
        assert_eq!(kube_proxy(&lab(), "n2")["hostnameOverride"], "n2");
    }
}
