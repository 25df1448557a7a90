//! Metrics of sensors.

use podtap_runtime::http::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// What is counted of all sensors.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Mirrored frames that were captured.
    pub frames: Counter,
    /// Frames that the kernel dropped.
    pub dropped: Counter,
    connected: Family<Sensor, Gauge>,
    failures: Family<Sensor, Counter>,
    sent: Family<Sensor, Counter>,
    not_sent: Family<NotSent, Counter>,
}

/// Of one sensor, or of all clients that connect to this program. Clones share what they count.
#[derive(Clone, Debug, Default)]
pub struct OfSensor {
    /// Connections.
    pub connected: Gauge,
    /// Connections that could not be made.
    pub failures: Counter,
    pub sent: Counter,
    /// Frames without room in the queue.
    pub no_room: Counter,
    /// Frames that could not be sent, or waited when their capture ended.
    pub failed: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sensor {
    sensor: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotSent {
    sensor: String,
    reason: &'static str,
}

impl Figures {
    pub fn new(metrics: &Metrics) -> Self {
        let figures = Self {
            frames: Counter::default(),
            dropped: Counter::default(),
            connected: Family::default(),
            failures: Family::default(),
            sent: Family::default(),
            not_sent: Family::default(),
        };
        metrics.register(|registry| {
            registry.register("sensor_frames", "Mirrored frames that were captured", figures.frames.clone());
            let help = "Frames that found no room in the kernel, because the program did not keep up";
            registry.register("sensor_frames_dropped", help, figures.dropped.clone());
            let help = "Connections to the sensor, or from clients";
            registry.register("sensor_connected", help, figures.connected.clone());
            let help = "Attempts to connect to the sensor that failed";
            registry.register("sensor_connection_failures", help, figures.failures.clone());
            registry.register("sensor_frames_sent", "Frames that were sent to the sensor", figures.sent.clone());
            let help = "Frames that were not sent to a sensor that captures: noRoom in its queue, because it reads too slowly, or \
                        the connection failed, or the capture ended while they waited";
            registry.register("sensor_frames_not_sent", help, figures.not_sent.clone());
        });
        figures
    }

    pub fn of(&self, sensor: &str) -> OfSensor {
        let name = Sensor { sensor: sensor.to_owned() };
        let not_sent = |reason| self.not_sent.get_or_create_owned(&NotSent { sensor: sensor.to_owned(), reason });
        OfSensor {
            connected: self.connected.get_or_create_owned(&name),
            failures: self.failures.get_or_create_owned(&name),
            sent: self.sent.get_or_create_owned(&name),
            no_room: not_sent("noRoom"),
            failed: not_sent("failed"),
        }
    }
}
