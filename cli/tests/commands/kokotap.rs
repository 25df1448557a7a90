//! `kokotap`, which asks no API server.

use super::*;

#[test]
fn kokotap_prints_a_tap_and_warns_of_what_means_nothing() {
    let server = Server::new(|_| error(500, "", "nothing should be asked"));
    let flags =
        ["kokotap", "--pod=centos", "--mirrortype=ingress", "--dest-node=kube-master", "--vxlan-id=100", "--image=x"];
    let output = server.run(&flags);
    let expected = "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata:\n  name: kokotap-centos\n  namespace: default\nspec:\n  \
        destinations:\n  - node:\n      interfaceName: mirror\n      name: kube-master\n  direction: Ingress\n  targets:\n    \
        interface: eth0\n    podNames:\n    - centos\n";
    assert_eq!((code(&output), stdout(&output).as_str()), (0, expected));
    let warnings = stderr(&output);
    assert_eq!(warnings.lines().filter(|line| line.starts_with("warning: ")).count(), 2, "{warnings}");
    assert!(
        warnings.contains("--vxlan-id=100 is left out") && warnings.contains("--image has no meaning"),
        "{warnings}"
    );
    let output = server.run(&["kokotap", "--pod=centos", "--dest-ip=10.1.1.1", "--vxlan-id=100", "-n", "db"]);
    assert!(stdout(&output).contains("vni: 100") && stdout(&output).contains("namespace: db"), "{}", stdout(&output));
    let output = server.run(&["kokotap", "--pod=centos", "--dest-node=n2", "--vxlan-id=5000"]);
    assert!(stdout(&output).contains("vni: 5000") && stderr(&output).is_empty(), "{}", stderr(&output));
    assert!(server.requests().is_empty());
}
