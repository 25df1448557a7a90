//! TCP load between the pods: iperf3 in their network namespaces.

use serde_json::Value;

use crate::{
    programs::bounded,
    stage::{IPERF_PORT, Stage},
};

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub flows: u32,
    /// To the tapped pod, instead of from it.
    pub receive: bool,
    /// Bits per second of each flow, at most.
    pub rate: Option<u64>,
    pub seconds: u32,
}

/// The result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Gbit/s at the receiving end.
    pub gigabits: f64,
    pub retransmissions: f64,
}

impl Load {
    /// Sends it, and waits until it has ended.
    pub fn run(self, stage: &Stage) -> Result<Outcome, String> {
        let [flows, seconds, port] = [self.flows, self.seconds, u32::from(IPERF_PORT)].map(|n| n.to_string());
        let (address, rate) = (stage.peer_address.to_string(), self.rate.unwrap_or(0).to_string());
        let mut words = vec!["iperf3", "-J", "-c", &address, "-p", &port, "-t", &seconds, "-P", &flows, "-b", &rate];
        if self.receive {
            words.push("-R");
        }
        let outcome = bounded(&stage.web, self.seconds + 5, &words).and_then(|text| parse(&text));
        if outcome.is_err() {
            stage.restart_server();
        }
        outcome
    }
}

fn parse(text: &str) -> Result<Outcome, String> {
    let report: Value = serde_json::from_str(text).map_err(|error| format!("iperf3: {error}"))?;
    if let Some(message) = report["error"].as_str() {
        return Err(format!("iperf3: {message}"));
    }
    let number = |sum: &str, what: &str| report["end"][sum][what].as_f64().ok_or(format!("iperf3: no {sum}.{what}"));
    Ok(Outcome {
        gigabits: number("sum_received", "bits_per_second")? / 1e9,
        retransmissions: number("sum_sent", "retransmits")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_receiver() {
        let text = r#"{"end": {"sum_sent": {"bits_per_second": 9e9, "retransmits": 3}, "sum_received": {"bits_per_second": 8e9}}}"#;
        assert_eq!(parse(text), Ok(Outcome { gigabits: 8.0, retransmissions: 3.0 }));
    }

    #[test]
    fn what_iperf3_complains_of_is_no_sample() {
        assert!(parse(r#"{"end": {}, "error": "unable to connect"}"#).is_err_and(|e| e.contains("unable to connect")));
        assert!(parse(r#"{"end": {}}"#).is_err());
        assert!(parse("").is_err());
    }
}
