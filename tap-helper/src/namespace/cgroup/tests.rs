use super::pod_uids;

const UID: &str = "4f9a1c2e-7b3d-4e5f-8a6b-0c1d2e3f4a5b";
const CONTAINER: &str = "9c5d7c0f6e8b4a3d2f1e0c9b8a7d6e5f4c3b2a190817263544536271809a8b7c";

fn uids(cgroup: &str) -> Vec<String> {
    let text = cgroup.replace("UID", UID).replace("U_D", &UID.replace('-', "_")).replace("CID", CONTAINER);
    let mut found: Vec<String> = pod_uids(&text).collect();
    found.dedup();
    found
}

#[test]
fn each_runtime_driver_and_version_names_the_pod() {
    for (what, cgroup) in [
        (
            "containerd, systemd, v2",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/cri-containerd-CID.scope\n",
        ),
        ("containerd, systemd, v2, guaranteed", "0::/kubepods.slice/kubepods-podU_D.slice/cri-containerd-CID.scope"),
        ("containerd, cgroupfs, v2", "0::/kubepods/besteffort/podUID/CID"),
        ("containerd, cgroupfs, v2, guaranteed", "0::/kubepods/podUID/CID"),
        (
            "containerd, cgroupfs, v1",
            "12:cpuset:/kubepods/burstable/podUID/CID\n11:memory:/kubepods/burstable/podUID/CID\n1:name=systemd:/kubepods/burstable/podUID/CID\n0::/\n",
        ),
        (
            "containerd, systemd, v1",
            "11:memory:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_D.slice/cri-containerd-CID.scope\n0::/system.slice/containerd.service",
        ),
        (
            "containerd and kubelet disagree",
            "1:name=systemd:/system.slice/containerd.service/kubepods-burstable-podU_D.slice:cri-containerd:CID",
        ),
        ("CRI-O, runc", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/crio-CID.scope"),
        (
            "CRI-O, crun",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/crio-CID.scope/container",
        ),
        ("CRI-O, conmon", "0::/kubepods.slice/kubepods-podU_D.slice/crio-conmon-CID.scope"),
        ("CRI-O, cgroupfs", "0::/kubepods/burstable/podUID/crio-CID"),
        (
            "cri-dockerd, systemd",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_D.slice/docker-CID.scope",
        ),
        ("cri-dockerd, cgroupfs, v1", "4:pids:/kubepods/besteffort/podUID/CID"),
        (
            "podman in the pod",
            "0::/kubepods.slice/kubepods-podU_D.slice/cri-containerd-CID.scope/libpod_parent/libpod-CID",
        ),
        (
            "kind",
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podU_D.slice/cri-containerd-CID.scope",
        ),
        ("kind in Docker, v1", "2:freezer:/docker/CID/kubelet/kubepods/burstable/podUID/CID"),
        ("k3s", "0::/k3s.service/kubepods/burstable/podUID/CID"),
        ("reader in a cgroup namespace, systemd", "0::/../../kubepods-burstable-podU_D.slice/cri-containerd-CID.scope"),
        ("reader in a cgroup namespace, cgroupfs", "0::/../../podUID/CID"),
        ("reader in a cgroup namespace of the same pod", "0::/../../../burstable/podUID"),
        ("the pod's own cgroup", "0::/kubepods.slice/kubepods-podU_D.slice"),
    ] {
        assert_eq!(uids(cgroup), [UID], "{what}");
    }
}

#[test]
fn a_static_pod_is_named_by_its_hash() {
    assert_eq!(
        uids(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f2e3d4c5b6a79880102030405060708.slice/cri-containerd-CID.scope"
        ),
        ["1f2e3d4c5b6a79880102030405060708"]
    );
}

#[test]
fn a_cluster_within_a_pod_names_both() {
    assert_eq!(uids("0::/kubepods/podUID/CID/kubelet/kubepods/podinner-uid/x"), [UID, "inner-uid"]);
}

#[test]
fn others_name_none() {
    for cgroup in [
        "0::/",
        "0::/init.scope",
        "0::/system.slice/containerd.service",
        "0::/user.slice/user-1000.slice/session-3.scope",
        "0::/kubepods.slice/kubepods-burstable.slice",
        "0::/machine.slice/libpod-CID.scope",
        "",
        "garbage",
        "0::/pod",
        "0::/kubepods/pod/CID",
    ] {
        assert_eq!(uids(cgroup), Vec::<String>::new(), "{cgroup}");
    }
}

#[test]
fn a_longer_uid_is_another_one() {
    assert_ne!(uids("0::/kubepods/podUIDff/CID"), [UID]);
}
