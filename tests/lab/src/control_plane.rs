//! The control plane: etcd, the API server, the controllers and the scheduler, and the fabric's bridge.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use crate::addresses::{API_PORT, CONTROL_PLANE, FABRIC, POD_RANGE, SERVICE_RANGE};
use crate::supervisor::{Component, Supervisor};
use crate::{
    cluster, fabric, member, mounts,
    process::Process,
    state::{Lab, write_whole},
};

const ETCD: &str = "http://127.0.0.1:2379";

/// What the API server records: what users write, and not what the components of the cluster do.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [get, list, watch]
- level: None
  userGroups: ['system:nodes', 'system:serviceaccounts']
- level: None
  users: ['system:apiserver', 'system:kube-controller-manager', 'system:kube-scheduler', 'system:kube-proxy']
- level: Metadata
";

/// Starts it, from outside.
pub fn start(lab: &Lab) -> Result<Process> {
    fs::create_dir_all(lab.path("etcd"))?;
    member::begin(lab, CONTROL_PLANE)
}

/// What its first process does.
pub fn init(lab: &Lab) -> Result<()> {
    nix::unistd::sethostname(CONTROL_PLANE)?;
    mounts::for_control_plane()?;
    fabric::make()?;
    let mut supervisor = Supervisor::new(lab, CONTROL_PLANE);
    supervisor.start(etcd(lab))?;
    write_whole(&lab.path("audit-policy.yaml"), AUDIT_POLICY)?;
    supervisor.start(api_server(lab))?;
    // The others exit if the API server is not ready soon enough.
    let admin = lab.pki("admin.kubeconfig");
    supervisor.wait_until("the API server", Duration::from_secs(180), || cluster::is_ready(lab, &admin))?;
    supervisor.start(controller_manager(lab))?;
    supervisor.start(scheduler(lab))?;
    supervisor.run()
}

fn component(lab: &Lab, name: &'static str, arguments: Vec<String>) -> Component {
    Component { name, program: lab.bin(name), arguments }
}

fn etcd(lab: &Lab) -> Component {
    let arguments = vec![
        format!("--data-dir={}", lab.path("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        // The lab need not survive a power cut of the machine itself, and a slow disk would slow down the cluster.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ];
    component(lab, "etcd", arguments)
}

fn api_server(lab: &Lab) -> Component {
    let pki = |file: &str| lab.pki(file).display().to_string();
    let arguments = vec![
        format!("--etcd-servers={ETCD}"),
        "--bind-address=0.0.0.0".into(),
        format!("--advertise-address={FABRIC}"),
        format!("--secure-port={API_PORT}"),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--allow-privileged=true".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
        format!("--service-account-key-file={}", pki("service-accounts.pub")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--kubelet-client-certificate={}", pki("apiserver-to-kubelet.crt")),
        format!("--kubelet-client-key={}", pki("apiserver-to-kubelet.key")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        format!("--audit-policy-file={}", lab.path("audit-policy.yaml").display()),
        format!("--audit-log-path={}", lab.log(CONTROL_PLANE, "audit").display()),
        // Megabytes, and files.
        "--audit-log-maxsize=50".into(),
        "--audit-log-maxbackup=1".into(),
        // Without this, logs and exec would resolve the node's name, and there is no DNS.
        "--kubelet-preferred-address-types=InternalIP".into(),
        // Pods of a lost node are replaced before tests time out.
        "--default-not-ready-toleration-seconds=20".into(),
        "--default-unreachable-toleration-seconds=20".into(),
    ];
    component(lab, "kube-apiserver", arguments)
}

fn controller_manager(lab: &Lab) -> Component {
    let mut arguments = kubeconfigs(lab, "controller-manager");
    arguments.extend([
        "--leader-elect=false".into(),
        // Nodes are created with the subnet that their bridge has; see cluster.rs.
        "--allocate-node-cidrs=false".into(),
        format!("--cluster-cidr={POD_RANGE}"),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        format!("--root-ca-file={}", lab.pki("ca.crt").display()),
        format!("--service-account-private-key-file={}", lab.pki("service-accounts.key").display()),
        "--use-service-account-credentials".into(),
        // Each controller requests a token of its own at the start: at the default of 20 requests per second that takes 4 s.
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
        "--node-monitor-period=2s".into(),
        "--node-monitor-grace-period=16s".into(),
    ]);
    component(lab, "kube-controller-manager", arguments)
}

fn scheduler(lab: &Lab) -> Component {
    let mut arguments = kubeconfigs(lab, "scheduler");
    arguments.push("--leader-elect=false".into());
    component(lab, "kube-scheduler", arguments)
}

fn kubeconfigs(lab: &Lab, identity: &str) -> Vec<String> {
    let path = lab.pki(&format!("{identity}.kubeconfig"));
    let flags = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"];
    flags.iter().map(|flag| format!("--{flag}={}", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn lab() -> Lab {
        Lab { root: PathBuf::from("/c"), state: PathBuf::from("/c/target/lab"), id: "podtap-test".into() }
    }

    #[test]
    fn node_loss_is_noticed_within_a_tests_patience() {
        assert!(api_server(&lab()).arguments.contains(&"--default-not-ready-toleration-seconds=20".into()));
        assert!(controller_manager(&lab()).arguments.contains(&"--node-monitor-grace-period=16s".into()));
    }

    #[test]
    fn every_file_that_a_component_is_given_lies_in_the_state() {
        for component in [etcd(&lab()), api_server(&lab()), controller_manager(&lab()), scheduler(&lab())] {
            assert_eq!(component.program, lab().bin(component.name));
            for path in component.arguments.iter().filter_map(|flag| flag.split_once('=')).map(|(_, value)| value) {
                assert!(!path.starts_with('/') || path.starts_with("/c/target/lab/"), "{path}");
            }
        }
    }
}
