//! `kokotap`: kokotap's flags, as a PodTap.

use std::net::IpAddr;

use clap::Args;
use podtap_api::{DEFAULT_EXTERNAL_PORT, DEFAULT_MAX_PODS, MirrorSpec, PodTap, PodTapSpec, Targets, VniRange, Vxlan};
use podtap_model::{InterfaceName, MirrorOptions, Vni};

use crate::{
    connection::Connection,
    console::{data, warn},
    destination::{Manner, To, destinations},
    exit::{Exit, Failure, Outcome, page},
    manifest,
    mirror::DirectionFlag,
    target::label,
};

/// kokotap's default for --namespace.
const NAMESPACE: &str = "default";

/// The flags of kokotap.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Pod to tap
    #[arg(long, value_name = "POD")]
    pod: String,
    /// Interface inside the pod
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    pod_ifname: InterfaceName,
    /// VXLAN network identifier
    #[arg(long, value_name = "N")]
    vxlan_id: Option<u32>,
    /// UDP port of an external destination
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_EXTERNAL_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,
    /// Name of the interface on the node
    #[arg(long, value_name = "NAME", default_value = "mirror")]
    ifname: InterfaceName,
    /// Direction, as seen from the pod
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DirectionFlag::Both)]
    mirrortype: DirectionFlag,
    /// Node that receives the frames
    #[arg(long, value_name = "NODE")]
    dest_node: Option<String>,
    /// Address that receives the frames
    #[arg(long, value_name = "ADDRESS")]
    dest_ip: Option<IpAddr>,
    /// Has no meaning: the image is chosen when PodTap is installed
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
}

/// Prints a PodTap.
pub fn run(arguments: Arguments, connection: &Connection) -> Outcome {
    let (tap, warnings) = arguments.tap(connection)?;
    for warning in warnings {
        warn(&warning);
    }
    data(&manifest::yaml(&manifest::document(&tap))?);
    Ok(Exit::Done)
}

impl Arguments {
    /// The tap, and what is different from kokotap.
    fn tap(self, connection: &Connection) -> Outcome<(PodTap, Vec<String>)> {
        let mut warnings = Vec::new();
        let to = match (&self.dest_node, self.dest_ip) {
            (Some(node), None) => format!("node/{node}:{}", self.ifname),
            (None, Some(IpAddr::V4(address))) => format!("{address}:{}", self.vxlan_port),
            (None, Some(IpAddr::V6(address))) => format!("[{address}]:{}", self.vxlan_port),
            (None, None) => return Err(Failure::usage("set --dest-node or --dest-ip: where the frames are sent")),
            (Some(_), Some(_)) => return Err(Failure::usage("set either --dest-node or --dest-ip, not both")),
        };
        if self.image.is_some() {
            warnings.push(format!(
                "--image has no meaning: PodTap's image is chosen when it is installed, see {}",
                page("install.md", "1-the-image")
            ));
        }
        if connection.kubeconfig.is_some() {
            warnings.push("--kubeconfig has no meaning: this reads no cluster. Give it to kubectl create".to_owned());
        }
        let vni = self.vxlan_id.map(Vni::try_from).transpose().map_err(|error| Failure::usage(error.to_string()))?;
        // That of a policy is not known here.
        let usual = VniRange::default();
        let first = usual.first;
        let vni = vni.filter(|vni| {
            let is_allowed = usual.contains(*vni);
            let is_internal = self.dest_node.is_some();
            if !is_allowed && is_internal {
                warnings.push(format!(
                    "--vxlan-id={vni} is left out: a free one is allocated, and the interface {} shows the same frames. PodTap uses {first} and more, unless vniRange of the PodTapPolicy says otherwise",
                    self.ifname
                ));
            } else if !is_allowed {
                warnings.push(format!("--vxlan-id={vni} needs a PodTapPolicy whose vniRange has it; the default begins at {first}"));
            }
            is_allowed || !is_internal
        });
        if let Some(address) = self.dest_ip {
            warnings
                .push(format!("an administrator must allow {address}, with allowedExternalCIDRs of the PodTapPolicy"));
        } else if self.vxlan_port != DEFAULT_EXTERNAL_PORT {
            warnings.push(
                "--vxlan-port has no meaning with --dest-node: all nodes receive at receiverPort of the PodTapPolicy"
                    .to_owned(),
            );
        }
        let to: To = to.parse().map_err(Failure::usage)?;
        let manner = Manner::default();
        let mirror = MirrorSpec {
            direction: self.mirrortype.into(),
            options: MirrorOptions::default(),
            destinations: destinations(vec![to], manner),
            vxlan: vni.map(|vni| Vxlan { vni: Some(vni) }),
            duration: None,
            suspend: false,
        };
        let targets = Targets {
            pod_names: Some(vec![self.pod.clone()]),
            pod_selector: None,
            interface: Some(self.pod_ifname),
            max_pods: DEFAULT_MAX_PODS,
        };
        let mut tap = PodTap::new(&format!("kokotap-{}", label(&self.pod)), PodTapSpec { targets, mirror });
        tap.metadata.namespace = Some(connection.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned()));
        Ok((tap, warnings))
    }
}
