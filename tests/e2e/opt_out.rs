//! Opting out fails closed, and a mistyped opt-out is reported.

use std::time::Duration;

use podtap_tests::{
    cluster::{Sandbox, traces},
    wait::until,
};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The objects that have a warning about an unknown key, and how often.
fn warnings(sandbox: &Sandbox) -> Vec<String> {
    let columns = "jsonpath={range .items[*]}{.regarding.kind}/{.regarding.name} {.note}{\"\\n\"}{end}";
    let arguments = ["get", "events.events.k8s.io", "--field-selector=reason=UnknownKey", "-o", columns];
    let text = sandbox.kubectl(&arguments, "").expect("events can be listed");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn whatever_is_not_false_opts_out() {
    let sandbox = Sandbox::new("opt-out");
    sandbox.pod("web", "n1", "web");
    let secret = sandbox.pod("secret", "n1", "web");
    sandbox.pod("typo", "n2", "web");
    for (pod, label) in
        [("web", "podtap.dev/exclude=false"), ("secret", "podtap.dev/exclude=yes"), ("typo", "podtap.dev/exlude=true")]
    {
        sandbox.kubectl(&["label", "pod", pod, label], "").expect("a pod can be labelled");
    }
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  targets: {podSelector: {}}\n  \
         destinations: [{node: {name: n2, interfaceName: opt-out}}]\n",
    );
    let status = sandbox.ready("web").status.expect("a status");
    assert_eq!((status.matched_pods, status.tapped_pods, status.excluded_pods), (2, 2, 1));
    assert_eq!(traces(&sandbox.network(&secret)), [""; 0], "nothing is in the pod that opted out");
    // Who has opted out is not told.
    let text = serde_json::to_string(&status).expect("a status is JSON");
    assert!(!text.contains("secret"), "{text}");

    // The typo does not opt out, and says so, once.
    until("the typo is reported", TIMEOUT, || match &warnings(&sandbox)[..] {
        [one] if one.starts_with("Pod/typo ") && one.contains("label podtap.dev/exlude") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    sandbox.kubectl(&["annotate", "pod", "typo", "podtap.dev/exclude="], "").expect("a pod can be annotated");
    until("without a value, it opts out, too", TIMEOUT, || {
        let status = sandbox.tap("web").status.unwrap_or_default();
        let now = (status.matched_pods, status.tapped_pods, status.excluded_pods);
        if now == (1, 1, 2) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert_eq!(warnings(&sandbox).len(), 1, "once per object and key: {:?}", warnings(&sandbox));

    let namespace = sandbox.namespace();
    for label in ["podtap.dev/excluded=true", "podtap.dev/exclude=1"] {
        sandbox.kubectl(&["label", "namespace", namespace, label], "").expect("a namespace can be labelled");
    }
    sandbox.condition("web", "Ready", "False", "NamespaceExcluded");
    until("the namespace's typo is reported to its users", TIMEOUT, || {
        let found = warnings(&sandbox);
        let expected = format!("Namespace/{namespace} ");
        if found.iter().any(|w| w.starts_with(&expected) && w.contains("podtap.dev/excluded")) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}
