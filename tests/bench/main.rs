//! `make bench`: measures PodTap's performance in the lab, prints the results and writes them to `target/bench`.
//!
//! Absolute results depend on the machine. They are shown, but no check depends on them.

mod arguments;
mod collector;
mod columns;
mod conntrack;
mod counters;
mod cpu;
mod establish;
mod fields;
mod flood;
mod footprint;
mod held;
mod http;
mod interrupt;
mod iperf;
mod latency;
mod machine;
mod pods;
mod programs;
mod readers;
mod report;
mod rounds;
mod stage;
mod statistics;
mod table;
mod tcp;
mod udp;
mod underlay;

use std::{path::Path, process::ExitCode, time::Instant};

use podtap_tests::{
    cluster::{Cluster, Sandbox, top},
    cores::Confined,
};

use crate::{arguments::Arguments, machine::Machine, rounds::Bench, stage::Stage, table::Table};

/// A family of comparisons.
type Comparison = fn(&Bench<'_>) -> Table;

/// What measures the binary of the collector.
type OfCollector = fn(&Arguments, &Path) -> Table;

const COMPARISONS: [(&str, Comparison); 10] = [
    ("tcp", tcp::measure),
    ("held", held::measure),
    ("latency", latency::measure),
    ("udp", udp::measure),
    ("conntrack", conntrack::measure),
    ("cpu", cpu::measure),
    ("fields", fields::measure),
    ("readers", readers::measure),
    ("underlay", underlay::measure),
    ("pods", pods::measure),
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
    let directory = top().join("target/bench");
    of_collector(&arguments, &directory);
    if arguments.need_lab() {
        let _alone = Cluster::alone();
        stage::clean_up();
        compare(&arguments, start, &directory);
        establish(&arguments, &directory);
    }
    println!("{} s; written to {}", start.elapsed().as_secs(), directory.display());
    if interrupt::stopped() { ExitCode::from(130) } else { ExitCode::SUCCESS }
}

/// Measures the release build of the collector, which `make bench` makes.
fn of_collector(arguments: &Arguments, directory: &Path) {
    let families: [(&str, OfCollector); 2] = [("ring", collector::ring), ("file", collector::file)];
    for (family, measure) in families.into_iter().filter(|(family, _)| arguments.selects(family)) {
        println!("{family}");
        measure(arguments, &top().join("target/release/podtap-collector")).finish(directory);
    }
}

fn compare(arguments: &Arguments, start: Instant, directory: &Path) {
    let selected: Vec<_> = COMPARISONS.into_iter().filter(|(family, _)| arguments.selects(family)).collect();
    if selected.is_empty() {
        return;
    }
    let stage = Stage::new();
    // The lab's veth devices run on the core of the sender, so this confines the mirror, too.
    let two = Confined::to(2);
    let bench = Bench::new(&stage, arguments, two.cores.clone(), start);
    let machine = Machine::watch(&two.cores);
    println!("{}", machine.description());
    println!("{} rounds of {} s; medians [lowest .. highest]", bench.rounds, bench.seconds);
    for (family, measure) in selected {
        bench.announce(family);
        measure(&bench).finish(directory);
    }
    if let Some(stolen) = machine.stolen() {
        println!("the hypervisor gave {stolen:.1} % of these cores' time to others");
    }
}

/// Measures how fast a tap is established, and the memory of helper pods. Not confined to two cores.
fn establish(arguments: &Arguments, directory: &Path) {
    if !["establish", "footprint", "cold"].iter().any(|family| arguments.selects(family)) {
        return;
    }
    let mut report = report::Report::default();
    let sandbox = Sandbox::alone("bench");
    let pods = [("n1", "web"), ("n2", "peer")].map(|(node, name)| sandbox.pod(name, node, name));
    if arguments.selects("establish") {
        establish::warm(&sandbox, &pods, &mut report);
    }
    if arguments.selects("footprint") {
        footprint::memory(&sandbox, &mut report);
    }
    if arguments.selects("cold") {
        establish::cold(&sandbox, &pods, &mut report);
    }
    drop(sandbox);
    report.finish(directory);
}
