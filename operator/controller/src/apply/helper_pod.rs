//! The helper pod of a node.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use k8s_openapi::{
    api::core::v1::{
        AppArmorProfile, Capabilities, Container, EnvVar, EnvVarSource, LocalObjectReference, Pod, PodSecurityContext,
        PodSpec, ResourceRequirements, SELinuxOptions, SeccompProfile, SecurityContext, Toleration,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use crate::{
    apply::{
        agent_account::owner,
        helper_probes,
        helper_volumes::{PROBE_SOCKET, SOCKET, field, socket_mount, socket_volume, token_mount, token_volume},
    },
    names::{self, LABEL_COMPONENT, LABEL_NAME, TEMPLATE_HASH},
};

/// User and group of the agent, the only user whose connections the tap-helper accepts.
///
/// It shares the PID namespace of the node, where a user may read the files of its other processes, tokens included. So it must be the
/// user of no other program: it is above what images, `/etc/subuid`, the kubelet's user namespaces and `OpenShift` (from
/// 1,000,000,000 on) usually assign, and in a range that systemd leaves free (`docs/UIDS-GIDS.md` there).
const AGENT_UID: i64 = 2_000_014_789;

/// Port of the metrics on the loopback of the node, if they are not served on all addresses.
const LOOPBACK_METRICS_PORT: u16 = 14791;

/// Memory limit of the agent.
const AGENT_MEMORY: u64 = 256 << 20;

/// The settings of helper pods, which differ between installations.
#[derive(Clone, Debug)]
pub struct HelperTemplate {
    pub namespace: String,
    pub image: String,
    pub pull_policy: String,
    pub pull_secrets: Vec<String>,
    pub priority_class: Option<String>,
    pub log_json: bool,
    /// TCP port on which agents serve metrics at all addresses of the node; 0: on its loopback only.
    pub metrics_port: u16,
}

impl HelperTemplate {
    /// Changes whenever the pods change.
    pub fn hash(&self) -> String {
        // Everything but the node, its account and its size is part of the hash. Serializing cannot fail; if it did, no pod would ever be
        // replaced, which is the safe side.
        names::short_hash(&serde_json::to_vec(&self.without_hash("", "", 0)).unwrap_or_default())
    }

    /// A pod of `node`, owned by the node's `NodeTap`. `memory` is the limit of its tap-helper, in bytes.
    ///
    /// It is bound to its node here, without the scheduler. It tolerates every taint, since cordoning a node must not end a tap.
    ///
    /// What drains nodes has to know that it returns elsewhere, or not at all: kubectl refuses to delete a pod without a controller
    /// (`unreplicatedFilter` in k8s.io/kubectl, `pkg/drain/filters.go`), whatever the controller's kind. The cluster autoscaler treats
    /// pods with the annotation like those of a `DaemonSet`, and Cluster API leaves pods with the label alone.
    pub fn pod(&self, node: &str, node_tap_uid: &str, memory: u64) -> Pod {
        let mut pod = self.without_hash(node, node_tap_uid, memory);
        pod.metadata.annotations.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), self.hash());
        pod
    }

    fn without_hash(&self, node: &str, node_tap_uid: &str, memory: u64) -> Pod {
        let labels = [
            (LABEL_NAME, names::PRODUCT.to_owned()),
            (LABEL_COMPONENT, names::HELPER.to_owned()),
            ("app.kubernetes.io/part-of", names::PRODUCT.to_owned()),
            ("app.kubernetes.io/managed-by", names::CONTROLLER.to_owned()),
            ("podtap.dev/node", names::node_label(node)),
            ("cluster.x-k8s.io/drain", "skip".to_owned()),
        ];
        let annotations = [
            ("cluster-autoscaler.kubernetes.io/daemonset-pod", "true".to_owned()),
            (podtap_api::METRICS_PORT, self.metrics_address().port().to_string()),
        ];
        Pod {
            metadata: ObjectMeta {
                generate_name: Some(names::helper_pod_prefix(node)),
                namespace: Some(self.namespace.clone()),
                labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
                annotations: Some(annotations.map(|(name, value)| (name.to_owned(), value)).into()),
                owner_references: Some(vec![OwnerReference { controller: Some(true), ..owner(node, node_tap_uid) }]),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(node, &names::agent_account(node, node_tap_uid), memory)),
            status: None,
        }
    }

    fn spec(&self, node: &str, account: &str, memory: u64) -> PodSpec {
        let secrets = self.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
        PodSpec {
            node_name: Some(node.to_owned()),
            host_network: Some(true),
            host_pid: Some(true),
            dns_policy: Some("ClusterFirstWithHostNet".to_owned()),
            restart_policy: Some("Always".to_owned()),
            termination_grace_period_seconds: Some(5),
            enable_service_links: Some(false),
            tolerations: Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]),
            priority_class_name: self.priority_class.clone(),
            service_account_name: Some(account.to_owned()),
            // Mounted below, into the agent only.
            automount_service_account_token: Some(false),
            image_pull_secrets: Some(secrets.collect()).filter(|secrets: &Vec<_>| !secrets.is_empty()),
            security_context: Some(PodSecurityContext {
                fs_group: Some(AGENT_UID),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![self.agent(), self.tap_helper(memory)],
            volumes: Some(vec![socket_volume(), token_volume()]),
            ..PodSpec::default()
        }
    }

    fn agent(&self) -> Container {
        // Not declared as a port of the container: the kubelet admits no two pods of a node with the same host port, and the next
        // helper pod of the node must not wait for that.
        let address = self.metrics_address().to_string();
        let command =
            ["/podtap-agent", "run", "--node", "$(NODE_NAME)", "--socket", SOCKET, "--probe-socket", PROBE_SOCKET];
        let command: Vec<&str> = command.into_iter().chain(["--listen", &address]).chain(self.log_flag()).collect();
        let (ready, live) = helper_probes::agent();
        Container {
            name: "agent".to_owned(),
            env: Some(vec![EnvVar {
                name: "NODE_NAME".to_owned(),
                value_from: Some(EnvVarSource { field_ref: Some(field("spec.nodeName")), ..EnvVarSource::default() }),
                ..EnvVar::default()
            }]),
            security_context: Some(SecurityContext {
                run_as_user: Some(AGENT_UID),
                run_as_group: Some(AGENT_UID),
                run_as_non_root: Some(true),
                allow_privilege_escalation: Some(false),
                ..restricted(&[])
            }),
            volume_mounts: Some(vec![socket_mount(), token_mount()]),
            startup_probe: Some(helper_probes::startup(&ready)),
            readiness_probe: Some(ready),
            liveness_probe: Some(live),
            ..self.container(&command, AGENT_MEMORY)
        }
    }

    fn tap_helper(&self, memory: u64) -> Container {
        let uid = AGENT_UID.to_string();
        let command = ["/tap-helper", "serve", "--socket", SOCKET, "--agent-uid", &uid];
        let command: Vec<&str> = command.into_iter().chain(self.log_flag()).collect();
        let live = helper_probes::tap_helper();
        Container {
            name: "tap-helper".to_owned(),
            security_context: Some(SecurityContext {
                run_as_user: Some(0),
                run_as_group: Some(0),
                // The API server rejects allowPrivilegeEscalation: false together with SYS_ADMIN.
                // The default profiles of AppArmor and SELinux forbid access to the processes of other containers (/proc/PID/ns),
                // whatever the capabilities. Nodes without AppArmor or SELinux ignore these fields.
                app_armor_profile: Some(AppArmorProfile {
                    type_: "Unconfined".to_owned(),
                    ..AppArmorProfile::default()
                }),
                se_linux_options: Some(SELinuxOptions { type_: Some("spc_t".to_owned()), ..SELinuxOptions::default() }),
                ..restricted(&["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "BPF"])
            }),
            volume_mounts: Some(vec![socket_mount()]),
            startup_probe: Some(helper_probes::startup(&live)),
            liveness_probe: Some(live),
            ..self.container(&command, memory)
        }
    }

    /// Where the kubelet, which forwards ports to the loopback, reaches the metrics in any case.
    fn metrics_address(&self) -> SocketAddr {
        match self.metrics_port {
            0 => (Ipv4Addr::LOCALHOST, LOOPBACK_METRICS_PORT).into(),
            port => (Ipv6Addr::UNSPECIFIED, port).into(),
        }
    }

    fn log_flag(&self) -> Option<&'static str> {
        self.log_json.then_some("--log-json")
    }

    /// `memory` is its limit, in bytes.
    fn container(&self, command: &[&str], memory: u64) -> Container {
        let quantities = |list: &[(&str, &str)]| {
            Some(list.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect())
        };
        let memory = format!("{}Mi", memory >> 20);
        Container {
            image: Some(self.image.clone()),
            image_pull_policy: Some(self.pull_policy.clone()),
            command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            resources: Some(ResourceRequirements {
                requests: quantities(&[("cpu", "10m"), ("memory", "24Mi")]),
                limits: quantities(&[("memory", &memory)]),
                ..ResourceRequirements::default()
            }),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            ..Container::default()
        }
    }
}

fn restricted(capabilities: &[&str]) -> SecurityContext {
    let add: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
    SecurityContext {
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: Some(add).filter(|add| !add.is_empty()),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

#[cfg(test)]
mod tests;
