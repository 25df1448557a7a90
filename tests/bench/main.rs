//! `make bench`: the figures that PodTap is judged by, measured in the lab, printed and written to `target/bench`.
//!
//! Absolute times are of one machine on one day. They are shown, and gate nothing.

mod establish;
mod footprint;
mod report;

use podtap_tests::cluster::{Cluster, Sandbox};

fn main() {
    let _alone = Cluster::alone();
    let mut report = report::Report::default();
    let sandbox = Sandbox::alone("bench");
    let pods = [("n1", "web"), ("n2", "peer")].map(|(node, name)| sandbox.pod(name, node, name));
    establish::warm(&sandbox, &pods, &mut report);
    footprint::memory(&sandbox, &mut report);
    establish::cold(&sandbox, &pods, &mut report);
    drop(sandbox);
    report.finish(Cluster::lab().top());
}
