//! `completion`, and what kubectl is answered.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn kubectl_is_answered_with_live_names() {
    let server = Server::new(|request| {
        let names = match request.target.split('?').next() {
            Some("/api/v1/namespaces/db/pods") => ["web-0", "web-1"],
            Some("/apis/podtap.dev/v1alpha1/namespaces/db/podtaps") => {
                assert!(request.target.contains("labelSelector=podtap.dev%2Fkept"), "{}", request.target);
                ["podtap-capture-1", "podtap-capture-2"]
            }
            other => panic!("{other:?}"),
        };
        list(&names.map(|name| json!({"metadata": {"name": name}})))
    });
    // As krew installs a plugin: a link in a folder of PATH.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bin");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    let plugin = folder.join("kubectl-podtap");
    symlink(env!("CARGO_BIN_EXE_kubectl-podtap"), &plugin).expect("a link");
    let install = |path: &Path| {
        let output = Command::new(&plugin).args(["completion", "kubectl", "--install"]).env("PATH", path).output();
        let output = output.expect("it runs");
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stderr(&output)
    };
    assert!(install(Path::new("/nowhere")).contains("PATH lacks"));
    assert_eq!(install(&folder), "");
    let link = folder.join("kubectl_complete-podtap");
    let ask = |words: &[&str]| {
        let output = Command::new(&link).env("KUBECONFIG", server.kubeconfig()).args(words).output().expect("it runs");
        stdout(&output)
    };
    assert_eq!(ask(&["explain", "-n", "db", "pod/web"]), "pod/web-0\t\npod/web-1\t\n:4\n");
    let captures = ask(&["capture", "-n", "db", "--resume", "podtap-capture-"]);
    assert_eq!(captures, "podtap-capture-1\t\npodtap-capture-2\t\n:4\n");
    assert_eq!(
        ask(&["ver"]),
        "version\tShow the versions of this program, of the kinds and of what runs in the cluster\n:4\n"
    );
    let output = server.run(&["completion", "bash"]);
    assert!(code(&output) == 0 && stdout(&output).contains("complete "), "{}", stdout(&output));
}
