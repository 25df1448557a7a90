//! The API server's clock.
//!
//! Durations of taps and the ages of objects are about times that the API server has written, or that another replica has taken from
//! it. The clock of this node may be an hour off.
//!
//! # Guarantees
//! Between two responses, time passes as on this node's monotonic clock, so setting the node's clock has no effect. Each response corrects
//! the reading by its `Date` header (RFC 9110, section 6.6.1), which has whole seconds. The reading is late by less than a second, plus the
//! time that the fastest response took; it is never ahead by more than that.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::{Response, header::DATE};
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimeParser};
use tokio::time::Instant;

/// `Date` has whole seconds.
const PRECISION: SignedDuration = SignedDuration::from_secs(1);

/// The API server's clock, as its responses show it. Clones share the reading.
#[derive(Clone, Debug, Default)]
pub struct ServerClock(Arc<Mutex<Option<Reading>>>);

/// The server's time at a moment of this process.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    time: Timestamp,
}

impl Reading {
    /// The server's time at a later moment.
    fn extrapolated(self, at: Instant) -> Timestamp {
        add(self.time, at.saturating_duration_since(self.at))
    }
}

impl ServerClock {
    /// The API server's time; this node's before the first response.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let reading = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.map_or_else(Timestamp::now, |reading| reading.extrapolated(Instant::now()))
    }

    /// Corrects the reading: the API server has just answered a request of the moment `sent`, at `date` by its own clock.
    pub fn observe(&self, sent: Instant, date: Timestamp) {
        let at = Instant::now();
        // The server wrote the date after the request was sent and before the response arrived, and cut off fractions of the second.
        let latest = add(date, at.saturating_duration_since(sent)).checked_add(PRECISION).unwrap_or(Timestamp::MAX);
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Within these bounds, earlier responses know better. Outside of them, the server's clock was set.
        let time = reading.map_or(date, |reading| reading.extrapolated(at).clamp(date, latest));
        *reading = Some(Reading { at, time });
    }

    /// Awaits a response, and corrects the reading by it. A response without a date counts as one of this moment by this node's clock:
    /// RFC 9110 requires the header of every server that has a clock, and Go's adds it.
    pub async fn observe_response<B, E>(
        self,
        response: impl Future<Output = Result<Response<B>, E>>,
    ) -> Result<Response<B>, E> {
        let sent = Instant::now();
        let response = response.await?;
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
        self.observe(sent, date.unwrap_or_else(Timestamp::now));
        Ok(response)
    }
}

fn add(time: Timestamp, duration: std::time::Duration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use tokio::time::advance;

    use super::*;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    fn millis(millis: i64) -> Timestamp {
        time(0) + SignedDuration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn time_passes_as_on_the_monotonic_clock() {
        let clock = ServerClock::default();
        clock.observe(Instant::now(), time(0));
        assert_eq!(clock.now(), time(0));
        advance(Duration::from_millis(90_500)).await;
        assert_eq!(clock.now(), millis(90_500));
    }

    #[tokio::test(start_paused = true)]
    async fn responses_narrow_the_reading() {
        let clock = ServerClock::default();
        // The server's clock is 0.9 s ahead of the first reading.
        clock.observe(Instant::now(), time(0));
        advance(Duration::from_millis(200)).await;
        clock.observe(Instant::now(), time(1));
        assert_eq!(clock.now(), time(1), "0.1 s behind");
        advance(Duration::from_millis(100)).await;
        clock.observe(Instant::now(), time(1));
        assert_eq!(clock.now(), millis(1_100), "which a response that fits does not undo");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_response_says_less() {
        let clock = ServerClock::default();
        clock.observe(Instant::now(), time(0));
        let sent = Instant::now();
        advance(Duration::from_secs(10)).await;
        clock.observe(sent, time(0));
        assert_eq!(clock.now(), time(10), "the response was delayed on its way");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_clock_is_set_is_followed() {
        let clock = ServerClock::default();
        clock.observe(Instant::now(), time(0));
        clock.observe(Instant::now(), time(3600));
        assert_eq!(clock.now(), time(3600));
        clock.observe(Instant::now(), time(-3600));
        assert_eq!(clock.now(), time(-3599), "the latest moment that has this date");
    }

    #[tokio::test]
    async fn the_date_of_a_response_counts_and_not_the_clock_of_the_node() {
        let clock = ServerClock::default();
        let mut response = Response::new(());
        let date = "Sun, 06 Nov 1994 08:49:37 GMT".parse().expect("a header");
        response.headers_mut().insert(DATE, date);
        let response = async { Ok::<_, Infallible>(response) };
        clock.clone().observe_response(response).await.expect("a response");
        let age = clock.now().duration_since("1994-11-06T08:49:37Z".parse().expect("a time"));
        assert!((SignedDuration::ZERO..SignedDuration::from_mins(1)).contains(&age), "{age:?}");
    }
}
