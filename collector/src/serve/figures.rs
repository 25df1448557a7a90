//! Metrics of the collector itself.

use podtap_runtime::http::Metrics;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::{
    analysis::{Analysis, Output},
    capture::Captured,
    shared::Status,
};

/// What it has counted, and how full it is.
pub struct Figures {
    frames: Counter,
    dropped: Counter,
    left_out: Counter,
    duplicates: Counter,
    flows: Counter,
    evicted: Counter,
    translations: Counter,
    contradictions: Counter,
    conflicts: Counter,
    names_dropped: Counter,
    written: Counter,
    not_written: Counter,
    lines_dropped: Counter,
    degradation: Gauge,
    folded: Gauge,
    active: Gauge,
    waiting: Gauge,
    edges: Gauge,
    details_dropped: Gauge,
    pods: Gauge,
}

impl Figures {
    pub fn new(metrics: &Metrics) -> Self {
        let figures = Self {
            frames: Counter::default(),
            dropped: Counter::default(),
            left_out: Counter::default(),
            duplicates: Counter::default(),
            flows: Counter::default(),
            evicted: Counter::default(),
            translations: Counter::default(),
            contradictions: Counter::default(),
            conflicts: Counter::default(),
            names_dropped: Counter::default(),
            written: Counter::default(),
            not_written: Counter::default(),
            lines_dropped: Counter::default(),
            degradation: Gauge::default(),
            folded: Gauge::default(),
            active: Gauge::default(),
            waiting: Gauge::default(),
            edges: Gauge::default(),
            details_dropped: Gauge::default(),
            pods: Gauge::default(),
        };
        let counters = [
            ("collector_frames", "Mirrored frames that were captured", &figures.frames),
            (
                "collector_frames_dropped",
                "Frames that found no room in the kernel, because the collector did not keep up",
                &figures.dropped,
            ),
            (
                "collector_frames_left_out",
                "Frames that the filter of a collector that does not keep up left out, estimated by a sample",
                &figures.left_out,
            ),
            (
                "collector_frames_duplicate",
                "Frames that were another view of one that was counted",
                &figures.duplicates,
            ),
            ("collector_flows", "Flows", &figures.flows),
            (
                "collector_flows_evicted",
                "Flows that were forgotten early, because the table was full",
                &figures.evicted,
            ),
            ("collector_translations", "Translations of connections that taps told", &figures.translations),
            (
                "collector_translations_contradicted",
                "Translations that contradict sequence numbers, or the endpoints of the service",
                &figures.contradictions,
            ),
            (
                "collector_identities_contradicted",
                "Addresses of which a tap told another owner than the API server, or two taps told different pods",
                &figures.conflicts,
            ),
            (
                "collector_flows_names_dropped",
                "Names from DNS and TLS that flows did not get, because there was no room",
                &figures.names_dropped,
            ),
            ("collector_frames_written", "Frames that were written to files", &figures.written),
            (
                "collector_frames_not_written",
                "Frames that were not written to files, because they came too fast or the volume has no room",
                &figures.not_written,
            ),
            (
                "collector_lines_dropped",
                "Lines of flows that were not written, because their reader is slow or gone",
                &figures.lines_dropped,
            ),
        ];
        let gauges = [
            (
                "collector_degradation",
                "What a collector that does not keep up does without: 0 nothing, 1 writing frames, 2 also most frames",
                &figures.degradation,
            ),
            ("collector_flows_active", "Flows in the table", &figures.active),
            ("collector_events_waiting", "Reports of flows that wait for the name of an end", &figures.waiting),
            ("collector_edges", "Edges of the map", &figures.edges),
            ("collector_flows_folded", "Flows whose edge found no room in the map", &figures.folded),
            (
                "collector_details_dropped",
                "Ports, services and DNS response codes of flows that found no room in the map",
                &figures.details_dropped,
            ),
            ("collector_pods", "Pods whose names are known", &figures.pods),
        ];
        metrics.register(|registry| {
            for (name, help, counter) in counters {
                registry.register(name, help, counter.clone());
            }
            for (name, help, gauge) in gauges {
                registry.register(name, help, gauge.clone());
            }
        });
        figures
    }

    /// Takes over what was counted so far, and returns it.
    pub fn update<Out: Output>(&self, captured: Captured, lines_dropped: u64, analysis: &mut Analysis<Out>) -> Status {
        if let Some(writer) = analysis.writer() {
            let (written, not_written) = writer.counts();
            raise(&self.written, written);
            raise(&self.not_written, not_written);
        }
        raise(&self.lines_dropped, lines_dropped);
        let counted = analysis.counters();
        raise(&self.frames, captured.frames);
        raise(&self.dropped, captured.dropped);
        raise(&self.left_out, captured.left_out);
        set(&self.degradation, captured.step as usize);
        raise(&self.duplicates, counted.duplicates);
        raise(&self.flows, counted.flows);
        raise(&self.evicted, counted.evicted);
        raise(&self.translations, counted.translations);
        raise(&self.names_dropped, counted.names_dropped);
        let sizes = analysis.sizes();
        raise(&self.contradictions, counted.contradictions + sizes.contradictions);
        raise(&self.conflicts, sizes.conflicts);
        set(&self.active, sizes.flows);
        set(&self.waiting, sizes.waiting);
        set(&self.edges, sizes.edges);
        set(&self.pods, sizes.pods);
        for (gauge, count) in [(&self.folded, sizes.folded), (&self.details_dropped, sizes.details_dropped)] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        Status { is_live: true, captured, counters: counted, active: sizes.flows, waiting: sizes.waiting }
    }
}

/// To a total that never falls.
fn raise(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn set(gauge: &Gauge, size: usize) {
    gauge.set(i64::try_from(size).unwrap_or(i64::MAX));
}
