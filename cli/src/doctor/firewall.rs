//! The rules that let mirrored frames pass, for firewalls that clusters usually have. `docs/firewalls.md` has the same.

use std::collections::BTreeSet;

use kube::ResourceExt as _;

use super::snapshot::Snapshot;

/// A firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firewall {
    Aws,
    Gcp,
    Azure,
    Ufw,
    Firewalld,
    Calico,
    Cilium,
}

impl Firewall {
    #[cfg(test)]
    const ALL: [Self; 7] = [Self::Aws, Self::Gcp, Self::Azure, Self::Ufw, Self::Firewalld, Self::Calico, Self::Cilium];

    /// What it is called.
    fn name(self) -> &'static str {
        match self {
            Self::Aws => "AWS security group",
            Self::Gcp => "GCP firewall",
            Self::Azure => "Azure network security group",
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
            Self::Calico => "Calico host endpoints",
            Self::Cilium => "Cilium host firewall",
        }
    }

    /// The commands or the manifest that lets UDP to a port pass between nodes with addresses of these families. Words in capitals are to
    /// be replaced.
    fn rule(self, port: u16, families: &[&str]) -> String {
        match self {
            Self::Aws => format!(
                "aws ec2 authorize-security-group-ingress --group-id NODE_GROUP --source-group NODE_GROUP --protocol udp --port {port}"
            ),
            Self::Gcp => format!(
                "gcloud compute firewall-rules create podtap --network NETWORK --allow udp:{port} --source-tags NODE_TAG --target-tags NODE_TAG"
            ),
            Self::Azure => format!(
                "az network nsg rule create --resource-group GROUP --nsg-name NODE_NSG --name podtap --priority 300 --direction Inbound \
                 --access Allow --protocol Udp --source-address-prefixes NODE_CIDR --destination-port-ranges {port}"
            ),
            Self::Ufw => format!("ufw allow proto udp from NODE_CIDR to any port {port}"),
            // Twice, now and for later: --reload would drop rules that others have added only for now.
            Self::Firewalld => {
                let rule = |options: &str, family: &str| {
                    let rule =
                        format!("rule family={family} source address=NODE_CIDR port port={port} protocol=udp accept");
                    format!("firewall-cmd {options}--add-rich-rule='{rule}'")
                };
                let rules =
                    families.iter().flat_map(|family| ["", "--permanent "].map(|options| rule(options, family)));
                rules.collect::<Vec<_>>().join("\n")
            }
            Self::Calico => format!(
                "# Only where policies apply to host endpoints already: one that is selected for the first time accepts nothing else, not \
                 even what the kubelet and NodePorts need, but for Calico's failsafe ports.\n\
                 apiVersion: projectcalico.org/v3\n\
                 kind: GlobalNetworkPolicy\n\
                 metadata: {{ name: podtap }}\n\
                 spec:\n  \
                   selector: HOST_ENDPOINTS\n  \
                   order: 10\n  \
                   ingress:\n  \
                   - action: Allow\n    \
                     protocol: UDP\n    \
                     source: {{ nets: [NODE_CIDR] }}\n    \
                     destination: {{ ports: [{port}] }}"
            ),
            Self::Cilium => format!(
                "# Only where the host firewall is enabled, and with Cilium 1.16 or later: an older one does not know enableDefaultDeny, \
                 and the nodes would accept nothing else.\n\
                 apiVersion: cilium.io/v2\n\
                 kind: CiliumClusterwideNetworkPolicy\n\
                 metadata: {{ name: podtap }}\n\
                 spec:\n  \
                   nodeSelector: {{}}\n  \
                   enableDefaultDeny: {{ ingress: false }}\n  \
                   ingress:\n  \
                   - fromEntities: [remote-node]\n    \
                     toPorts:\n    \
                     - ports: [{{ port: \"{port}\", protocol: UDP }}]"
            ),
        }
    }
}

/// The rules for the firewalls that this cluster may have: of its cloud, or of each if that is unknown; of its CNI; and of hosts.
pub fn rules(snapshot: &Snapshot) -> String {
    let (port, families) = (snapshot.receiver_port(), families(snapshot));
    let rule = |firewall: Firewall| format!("{}:\n{}", firewall.name(), indented(&firewall.rule(port, &families)));
    let rules: Vec<String> = firewalls(snapshot).into_iter().map(rule).collect();
    format!("Let UDP {port} pass between the nodes, for example:\n{}", rules.join("\n"))
}

fn firewalls(snapshot: &Snapshot) -> Vec<Firewall> {
    let clouds = [("aws://", Firewall::Aws), ("gce://", Firewall::Gcp), ("azure://", Firewall::Azure)];
    let nodes = || snapshot.nodes.iter().flatten();
    let is_in = |prefix: &str| {
        nodes().filter_map(|node| node.spec.as_ref()?.provider_id.as_deref()).any(|id| id.starts_with(prefix))
    };
    let known: Vec<Firewall> =
        clouds.iter().filter(|(prefix, _)| is_in(prefix)).map(|(_, firewall)| *firewall).collect();
    let mut firewalls = if known.is_empty() { clouds.map(|(_, firewall)| firewall).to_vec() } else { known };
    firewalls.extend([Firewall::Ufw, Firewall::Firewalld]);
    let has = |prefix: &str| nodes().any(|node| node.annotations().keys().any(|key| key.contains(prefix)));
    if snapshot.cni.calico.is_some() || has("projectcalico.org/") {
        firewalls.push(Firewall::Calico);
    }
    if snapshot.cni.cilium.is_some() || has("cilium.io/") {
        firewalls.push(Firewall::Cilium);
    }
    firewalls
}

/// Those of the addresses of the nodes, as firewalld calls them.
fn families(snapshot: &Snapshot) -> Vec<&'static str> {
    let addresses = snapshot.all_nodes.iter().filter_map(|node| node.status.as_ref()?.addresses.as_ref()).flatten();
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    let families: BTreeSet<_> =
        internal.map(|address| if address.address.contains(':') { "ipv6" } else { "ipv4" }).collect();
    if families.is_empty() { vec!["ipv4"] } else { families.into_iter().collect() }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{super::fixtures::healthy, *};

    #[test]
    fn the_page_has_the_same_rules() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/firewalls.md");
        let page = fs::read_to_string(page).expect("the page exists");
        for firewall in Firewall::ALL {
            let section = page.split("\n## ").find(|text| text.lines().next() == Some(firewall.name()));
            let section =
                section.unwrap_or_else(|| panic!("docs/firewalls.md has no section “## {}”", firewall.name()));
            let rule = firewall.rule(podtap_model::bounds::RECEIVER_PORT, &["ipv4"]);
            // A manifest is applied to the whole cluster, and may be copied without the page.
            assert_eq!(rule.contains("apiVersion"), rule.starts_with("# Only where "), "{rule}");
            let block = rule.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n");
            assert!(section.contains(&block), "docs/firewalls.md, {}:\n{block}", firewall.name());
        }
    }

    #[test]
    fn firewalls_that_the_cluster_cannot_have_are_left_out() {
        let mut snapshot = healthy();
        assert_eq!(firewalls(&snapshot), Firewall::ALL[..5]);
        let nodes = snapshot.nodes.as_mut().expect("they are known");
        nodes[0].spec.get_or_insert_default().provider_id = Some("aws:///eu-west-1a/i-1".to_owned());
        nodes[0].annotations_mut().insert("network.cilium.io/ipv4-pod-cidr".to_owned(), "10.0.0.0/24".to_owned());
        if let Some(status) = &mut snapshot.all_nodes[1].status {
            status.addresses.get_or_insert_default()[0].address = "2001:db8::2".to_owned();
        }
        let expected = [Firewall::Aws, Firewall::Ufw, Firewall::Firewalld, Firewall::Cilium];
        assert_eq!(firewalls(&snapshot), expected);
        snapshot
            .policy
            .as_mut()
            .expect("it is known")
            .get_or_insert_with(super::super::fixtures::policy)
            .spec
            .receiver_port = 20_000;
        let text = rules(&snapshot);
        assert!(text.contains("--port 20000") && !text.contains("14789"), "{text}");
        assert!(!text.contains("--reload"), "it would drop rules that others have added: {text}");
        for family in ["ipv4", "ipv6"] {
            for options in ["", "--permanent "] {
                let rule = format!("  firewall-cmd {options}--add-rich-rule='rule family={family} source ");
                assert!(text.contains(&rule), "{rule}: {text}");
            }
        }
    }
}
