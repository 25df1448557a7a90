//! `make bench`: PodTap's performance figures, measured in the lab, printed and written to `target/bench`.
//!
//! Absolute figures are those of one machine on one day. They are only shown: no figure fails the bench.

mod arguments;
mod columns;
mod conntrack;
mod counters;
mod cpu;
mod establish;
mod fields;
mod flood;
mod footprint;
mod held;
mod interrupt;
mod iperf;
mod latency;
mod programs;
mod report;
mod rounds;
mod stage;
mod statistics;
mod table;
mod tcp;
mod udp;

use std::{path::Path, process::ExitCode, time::Instant};

use podtap_tests::cluster::{Cluster, Sandbox};

use crate::{
    arguments::Arguments,
    rounds::Bench,
    stage::{Stage, TwoCores},
    table::Table,
};

/// A family of comparisons.
type Comparison = fn(&Bench<'_>) -> Table;

const COMPARISONS: [(&str, Comparison); 7] = [
    ("tcp", tcp::measure),
    ("held", held::measure),
    ("latency", latency::measure),
    ("udp", udp::measure),
    ("conntrack", conntrack::measure),
    ("cpu", cpu::measure),
    ("fields", fields::measure),
];

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    interrupt::watch();
    let start = Instant::now();
    let _alone = Cluster::alone();
    stage::sweep();
    let directory = Cluster::lab().top().join("target/bench");
    compare(&arguments, start, &directory);
    establish(&arguments, &directory);
    println!("{} s; written to {}", start.elapsed().as_secs(), directory.display());
    if interrupt::stopped() { ExitCode::from(130) } else { ExitCode::SUCCESS }
}

fn compare(arguments: &Arguments, start: Instant, directory: &Path) {
    let included: Vec<_> = COMPARISONS.into_iter().filter(|(family, _)| arguments.includes(family)).collect();
    if included.is_empty() {
        return;
    }
    let stage = Stage::new();
    let two = TwoCores::confine();
    let bench = Bench::new(&stage, arguments, two.cores.clone(), start);
    println!("cores {:?}; {} rounds of {} s; medians [lowest .. highest]", two.cores, bench.rounds, bench.seconds);
    for (family, measure) in included {
        bench.announce(family);
        measure(&bench).finish(directory);
    }
}

/// How fast a tap is established, and its memory. Not confined to two cores.
fn establish(arguments: &Arguments, directory: &Path) {
    if !["establish", "footprint", "cold"].iter().any(|family| arguments.includes(family)) {
        return;
    }
    let mut report = report::Report::default();
    let sandbox = Sandbox::alone("bench");
    let pods = [("n1", "web"), ("n2", "peer")].map(|(node, name)| sandbox.pod(name, node, name));
    if arguments.includes("establish") {
        establish::warm(&sandbox, &pods, &mut report);
    }
    if arguments.includes("footprint") {
        footprint::memory(&sandbox, &mut report);
    }
    if arguments.includes("cold") {
        establish::cold(&sandbox, &pods, &mut report);
    }
    drop(sandbox);
    report.finish(directory);
}
