//! What a helper pod costs while it has ten taps.

use podtap_tests::cluster::Sandbox;

use crate::report::Report;

/// Resident memory of agent and tap-helper together, on the node of the tapped pod.
pub fn memory(sandbox: &Sandbox, report: &mut Report) {
    for i in 0..10 {
        sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: ten-{i}}}\nspec:\n  \
             targets: {{podNames: [web]}}\n  destinations: [{{node: {{name: n2, interfaceName: ten-{i}}}}}]\n"
        ));
    }
    let taps: Vec<String> = (0..10).map(|i| format!("ten-{i}")).collect();
    // Ten taps on one pod are more than the default policy allows: those beyond it count only on n2.
    for tap in &taps {
        sandbox.condition(tap, "DestinationsReady", "True", "");
    }
    let samples = ["n1", "n2"].map(|node| {
        let listing = sandbox
            .lab()
            .on_node(
                node,
                "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' < $p/cmdline 2>/dev/null)\" in \
                 '/tap-helper serve'*|'/podtap-agent'*) sed -n 's/^VmRSS:[ \\t]*\\([0-9]*\\) kB/\\1/p' $p/status;; esac; done",
            )
            .expect("the node runs");
        let sizes: Vec<f64> = listing.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        assert_eq!(sizes.len(), 2, "agent and tap-helper: {listing}");
        println!("  {node}: {sizes:?} kB");
        sizes.iter().sum::<f64>() / 1024.0
    });
    report.add("helper pod memory, agent + tap-helper, 10 taps", "< 24 MiB", "MiB RSS", samples.to_vec());
    sandbox.kubectl(&["delete", "podtaps", "--all"], "").expect("taps can be deleted");
}
