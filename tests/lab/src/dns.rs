//! CoreDNS, on request: a lab is up sooner without, and few tests look names up.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;

use crate::addresses::{CONTROL_PLANE, DNS_SERVICE};
use crate::image::{self, Image, Source};
use crate::{binaries, cluster, load, member, progress, state::Lab, up};

/// The name of its image in the manifest.
const IMAGE: &str = "podtap.dev/coredns:1";
/// What is deployed, from the top of the checkout.
const MANIFEST: &str = "tests/lab/dns/coredns.yaml";

/// Builds and deploys CoreDNS, and waits until every node that is up reaches it by the address of its Service.
pub fn deploy(lab: &Lab) -> Result<()> {
    member::expect(lab, CONTROL_PLANE)?;
    let began = Instant::now();
    let archive = lab.path("images/coredns.tar");
    {
        let _lock = lab.lock()?;
        binaries::ensure_coredns(lab)?;
        let image = Image {
            name: IMAGE.into(),
            entrypoint: vec!["/coredns".into()],
            files: [("coredns".into(), Source::File(lab.bin("coredns")))].into(),
            ..Image::default()
        };
        image::write(&image, &archive)?;
    }
    load::load(lab, &archive)?;
    cluster::apply(lab, &lab.root.join(MANIFEST))?;
    // Its Service refuses connections until a pod is ready.
    let service = SocketAddr::new(DNS_SERVICE.parse()?, 53);
    let nodes = member::running_nodes(lab);
    let members = nodes.iter().map(String::as_str).chain([CONTROL_PLANE]);
    progress::step("waiting for CoreDNS", || {
        up::wait_until(lab, "CoreDNS", members, || nodes.iter().all(|node| up::reaches(lab, node, service)))
    })?;
    progress::say(&format!("pods can look up names, after {:.1} s", began.elapsed().as_secs_f32()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::addresses::FABRIC;

    #[test]
    fn the_manifest_has_the_image_and_the_addresses_of_the_lab() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(MANIFEST);
        let text = fs::read_to_string(file).expect("the manifest");
        for line in
            [format!("image: {IMAGE}"), format!("clusterIP: {DNS_SERVICE}"), format!("{FABRIC} pay.example.com")]
        {
            assert_eq!(text.lines().filter(|found| found.trim() == line).count(), 1, "{line}");
        }
    }
}
