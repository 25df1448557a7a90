//! Metrics that are sent at intervals, while counting continues.

use std::{sync::Arc, time::Duration};

use podtap_runtime::{backoff::Backoff, http::Bytes};
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{Failure, FailureKind, Sink};
use crate::{
    http::Client,
    metrics::{
        Counted, now,
        table::{Metric, Position, Shown},
    },
    policy::Permit,
    record::Record,
};

/// How metrics become requests.
pub trait Format: Send + 'static {
    fn headers(&self) -> &'static [(&'static str, &'static str)];

    /// Some metrics, each with some of its series. `now` is in milliseconds since 1970. `None`: there is nothing to send of them.
    fn request<'a>(
        &self,
        metrics: impl Iterator<Item = (&'static Metric, impl Iterator<Item = Shown<'a>>)>,
        now: u64,
    ) -> Option<Bytes>;

    /// Whether the answer says that all was taken.
    fn check(_answer: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
}

/// Series of a request, as Prometheus counts and sends them.
const SERIES: usize = 2000;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the last values are tried to be sent: sinks have 30 seconds at the end.
const LAST_VALUES: Duration = Duration::from_secs(15);

/// Counts records, and sends all series at intervals. What could not be sent is in the next values.
#[derive(Debug)]
pub struct Push<F> {
    counted: Counted,
    server: (String, u16),
    to: Arc<Mutex<To<F>>>,
    interval: Duration,
    next: Instant,
    backoff: Backoff,
    running: Option<JoinHandle<Result<(), Failure>>>,
    ended: Option<Result<(), Failure>>,
    /// Records since the values that were sent last, and how many of them are being sent.
    held: u64,
    sending: u64,
}

/// Where series are sent, and how.
#[derive(Debug)]
struct To<F> {
    client: Client,
    format: F,
    /// `None`: nothing may be sent yet.
    permit: Option<Permit>,
}

impl<F: Format> Push<F> {
    pub fn new(counted: Counted, client: Client, format: F, interval: Duration) -> Self {
        Self {
            counted,
            server: client.server(),
            to: Arc::new(Mutex::new(To { client, format, permit: None })),
            interval,
            next: Instant::now() + interval,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            running: None,
            ended: None,
            held: 0,
            sending: 0,
        }
    }

    /// Notes what has ended, and starts what is due.
    async fn advance(&mut self) {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end().await;
        }
        if self.running.is_none() && self.next <= Instant::now() {
            self.next = Instant::now() + self.interval;
            self.start();
        }
    }

    fn start(&mut self) {
        self.sending = self.held;
        self.running = Some(tokio::spawn(send(Arc::clone(&self.to), self.counted.clone())));
    }

    /// Waits for what is being sent.
    async fn end(&mut self) {
        let Some(running) = &mut self.running else { return };
        let result = running.await.unwrap_or_else(|error| Err(Failure::unavailable(error.to_string())));
        self.running = None;
        match &result {
            Ok(()) => {
                self.held -= self.sending;
                self.backoff.reset();
            }
            Err(_) => self.next = Instant::now() + self.backoff.pause(),
        }
        self.ended = Some(result);
    }
}

/// Sends all series. Asks the policy before each request: all together may take longer than an answer of it holds.
async fn send<F: Format>(to: Arc<Mutex<To<F>>>, counted: Counted) -> Result<(), Failure> {
    let To { client, format, permit } = &mut *to.lock().await;
    let permit = permit.as_mut().ok_or_else(|| Failure::unavailable("nothing may be sent yet"))?;
    let mut position = Position::default();
    while let Some(request) = encode(format, &counted, &mut position) {
        permit.renew().await?;
        if permit.has_moved() {
            client.disconnect();
        }
        let answer = timeout(PATIENCE, client.post(request, format.headers())).await;
        let late = |_| Err(Failure::unavailable(format!("no answer within {} seconds", PATIENCE.as_secs())));
        F::check(&answer.unwrap_or_else(late)?)?;
    }
    Ok(())
}

/// The next request. It is encoded when it is sent: all together would take more memory than the table. Counting waits while one is encoded,
/// and continues while it is sent, so requests have values of different times, and each tells its own. What is guaranteed:
/// - A series that exists from the first request to the last is in exactly one, and a histogram has all its buckets in that one.
/// - No value is less than what was sent of its series before, because tables only count up.
/// - What was counted before the first request is in them. What was counted since may be in some series, and not yet in others.
pub fn encode(format: &impl Format, counted: &Counted, position: &mut Position) -> Option<Bytes> {
    let counting = counted.lock();
    let now = now();
    while let Some(metrics) = counting.table.next(position, SERIES, now) {
        let request = format.request(metrics, now);
        if request.is_some() {
            return request;
        }
    }
    None
}

impl<F: Format> Sink for Push<F> {
    const MOST: usize = 1024;
    const IS_ATTEMPT: bool = false;
    /// Counting does not wait for the policy.
    const ASKS_ITSELF: bool = true;

    fn servers(&self) -> Vec<(String, u16)> {
        vec![self.server.clone()]
    }

    /// Sending asks the policy, and closes connections itself.
    fn disconnect(&mut self) {}

    fn permitted(&mut self, permit: Permit) {
        // Nothing is sent yet.
        if let Ok(mut to) = self.to.try_lock() {
            to.permit = Some(permit);
        }
    }

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        // Counted once: nothing before it waits, so that no attempt ends there.
        self.counted.count(records);
        self.held += records.len() as u64;
        self.advance().await;
        Ok(())
    }

    async fn idle(&mut self) -> Result<(), Failure> {
        self.counted.count(&[]);
        self.advance().await;
        Ok(())
    }

    fn attempted(&mut self) -> Option<Result<(), Failure>> {
        self.ended.take()
    }

    fn held(&self) -> u64 {
        self.held
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + LAST_VALUES;
        self.end().await;
        self.to.lock().await.permit.iter_mut().for_each(Permit::keep);
        loop {
            self.start();
            self.end().await;
            match self.ended.take() {
                Some(Err(failure)) if failure.kind == FailureKind::Unavailable && Instant::now() < until => {
                    sleep_until(self.next).await;
                }
                Some(result) => return result,
                None => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        io::{BufRead as _, BufReader, Write as _},
        os::unix::net::UnixListener,
        path::PathBuf,
        process,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use podtap_runtime::{
        http::{Full, Handler, Incoming, Request, Response, Server},
        permit::AGE,
    };
    use tokio::time::{advance, pause, resume, sleep};

    use super::*;
    use crate::{
        figures::{Figures, SinkFigures},
        http::fixtures::{ANY, Answering},
        metrics::{MetricsConfig, Profile, TableFigures, table::Value},
        policy::Policy,
        record::fixtures::named,
        sinks::{Condition, Sinks, WhenFull},
    };

    /// The sum of all counters. `NetObserv`'s metrics are two requests: those of namespaces and of workloads.
    struct Sums;

    impl Format for Sums {
        fn headers(&self) -> &'static [(&'static str, &'static str)] {
            &[]
        }

        fn request<'a>(
            &self,
            metrics: impl Iterator<Item = (&'static Metric, impl Iterator<Item = Shown<'a>>)>,
            _now: u64,
        ) -> Option<Bytes> {
            let counts = metrics.flat_map(|(_, series)| series).map(|shown| match shown.value {
                Value::Count(count) => count,
                Value::Histogram(_) => 0,
            });
            Some(counts.sum::<u64>().to_string().into())
        }
    }

    /// Both directions: 54 bytes, a frame and a report of each.
    fn sum(records: u64) -> String {
        (records * 2 * (54 + 1 + 1)).to_string()
    }

    /// A policy that allows all or nothing. Its socket is removed when it is dropped.
    struct Asked {
        socket: PathBuf,
        allows: Arc<AtomicBool>,
    }

    impl Asked {
        fn new(name: &str, allows: bool) -> Self {
            let socket = env::temp_dir().join(format!("podtap-exporter-push-{name}-{}", process::id()));
            let (listener, allows) =
                (UnixListener::bind(&socket).expect("it can be made"), Arc::new(AtomicBool::new(allows)));
            let answers = Arc::clone(&allows);
            // It ends with the test.
            thread::spawn(move || {
                for mut stream in listener.incoming().map_while(Result::ok) {
                    let _ = BufReader::new(&stream).read_line(&mut String::new());
                    let answer: &[u8] = if answers.load(Ordering::SeqCst) { b"yes\n" } else { b"it may not\n" };
                    let _ = stream.write_all(answer);
                }
            });
            Self { socket, allows }
        }
    }

    impl Drop for Asked {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.socket);
        }
    }

    fn counted() -> Counted {
        Counted::new(&MetricsConfig::of(Profile::Netobserv), TableFigures::default()).expect("it is valid")
    }

    async fn push(counted: Counted, server: impl Handler) -> (Push<Sums>, Server) {
        let listening = Server::spawn(ANY, server).await.expect("it listens");
        let config = serde_json::from_str(&format!(r#"{{"url":"http://{}/"}}"#, listening.address())).expect("valid");
        let client = Client::new(config, |_| true).expect("it is valid");
        // What it sends is due at once.
        (Push::new(counted, client, Sums, Duration::ZERO), listening)
    }

    async fn start(asked: &Asked, server: impl Handler) -> (Sinks, SinkFigures, Server) {
        let (mut sinks, figures) = (Sinks::new(Policy::new(Some(&asked.socket))), Figures::default());
        let (push, listening) = push(counted(), server).await;
        sinks.start("s", 1 << 20, &figures, push);
        (sinks, figures.of_sink("s"), listening)
    }

    fn bodies(server: &Answering) -> Vec<Bytes> {
        server.got.lock().expect("no panic").iter().map(|request| request.body().clone()).collect()
    }

    async fn until_told(condition: &Condition, expected: &str) {
        let start = Instant::now();
        let told = || serde_json::to_string(&condition.told()).expect("JSON");
        while !told().contains(expected) {
            assert!(start.elapsed() < Duration::from_secs(60), "{}", told());
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn counting_continues_while_the_policy_allows_nothing() {
        let (asked, server) = (Asked::new("counting", false), Answering::new([]));
        let (sinks, figures, _listening) = start(&asked, server.clone()).await;
        let condition = sinks.conditions().remove(0);
        for number in 1..=3 {
            sinks.push(&mut vec![named("web")], WhenFull::DropOldest).await;
            until_told(&condition, "127.0.0.1: it may not").await;
            while figures.sent.get() < number {
                sleep(Duration::from_millis(10)).await;
            }
        }
        assert_eq!(bodies(&server).len(), 0);
        asked.allows.store(true, Ordering::SeqCst);
        assert_eq!(sinks.finish(Duration::from_secs(60)).await, []);
        assert_eq!(bodies(&server), [3, 3].map(sum));
    }

    /// Counts another record before each answer.
    #[derive(Clone)]
    struct Counting(Answering, Counted);

    impl Handler for Counting {
        type Body = Full<Bytes>;

        async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
            self.1.count(&[named("web")]);
            self.0.respond(request).await
        }
    }

    #[tokio::test]
    async fn a_request_has_the_values_of_when_it_is_sent() {
        let (counted, server) = (counted(), Answering::new([]));
        let (mut push, _listening) = push(counted.clone(), Counting(server.clone(), counted.clone())).await;
        push.permitted(Policy::default().permit(Vec::new()));
        counted.count(&[named("web")]);
        push.finish().await.expect("it is sent");
        push.finish().await.expect("it is sent");
        assert_eq!(bodies(&server), [1, 2, 3, 4].map(sum));
    }

    /// Takes so long for an answer that the policy must be asked again, which allows nothing any more.
    #[derive(Clone)]
    struct Slow(Answering, Arc<AtomicBool>);

    impl Handler for Slow {
        type Body = Full<Bytes>;

        async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
            self.1.store(false, Ordering::SeqCst);
            pause();
            advance(AGE).await;
            resume();
            self.0.respond(request).await
        }
    }

    #[tokio::test]
    async fn a_refusal_stops_what_is_being_sent() {
        let (asked, server) = (Asked::new("stop", true), Answering::new([]));
        let (sinks, figures, _listening) = start(&asked, Slow(server.clone(), Arc::clone(&asked.allows))).await;
        sinks.push(&mut vec![named("web")], WhenFull::DropOldest).await;
        until_told(&sinks.conditions()[0], "127.0.0.1: it may not").await;
        assert_eq!(sinks.finish(Duration::ZERO).await, [("s".to_owned(), 1)]);
        assert_eq!(figures.unsent.get(), 1);
        assert_eq!(bodies(&server), [sum(1)]);
    }
}
