use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::{NodeStatus, SenderCounters};
use serde_json::json;
use tokio::{net::UnixListener, time::timeout};
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::*;

/// A tap-helper under the test's control, and the connection of the agent.
struct Fixture {
    listener: Option<UnixListener>,
    socket: PathBuf,
    desired: watch::Sender<Option<Request>>,
    renewals: watch::Sender<Option<Renewal>>,
    connections: watch::Receiver<u64>,
    requests: watch::Sender<u64>,
    reports: watch::Receiver<Option<Report>>,
    counters: watch::Receiver<Option<Arc<Counters>>>,
    health: Health,
    agent: tokio::task::JoinHandle<()>,
}

/// One connection, seen from the tap-helper.
struct Helper {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

fn update(uid: &str, generation: i64) -> Request {
    with_spec(uid, generation, json!({}))
}

fn with_spec(uid: &str, generation: i64, spec: serde_json::Value) -> Request {
    Request::Apply(DesiredUpdate { uid: Some(uid.into()), generation, now: None, spec })
}

fn report(uid: &str, generation: i64) -> Report {
    let status = NodeStatus { observed_generation: Some(generation), ..NodeStatus::default() };
    Report { uid: Some(uid.into()), status }
}

/// The API server's clock, an hour ahead of that of this machine.
fn server_clock() -> ServerClock {
    let clock = ServerClock::default();
    clock.observe(tokio::time::Instant::now(), Timestamp::now() + SignedDuration::from_hours(1));
    clock
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future).await.expect("happens soon")
}

impl Fixture {
    fn new(name: &str) -> Self {
        let socket = std::env::temp_dir().join(format!("podtap-connection-{name}-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&socket).expect("a socket in the temporary directory");
        let (desired, desired_receiver) = watch::channel(None);
        let (renewals, renewed) = watch::channel(None);
        let (connected, connections) = watch::channel(0);
        let (requests, requested) = watch::channel(0);
        let (reported, reports) = watch::channel(None);
        let (answered, counters) = watch::channel(None);
        let health = Health::new(Duration::MAX);
        let channels = Channels {
            desired: desired_receiver,
            renewals: renewed,
            clock: server_clock(),
            connections: connected,
            requests: requested,
            reports: reported,
            counters: answered,
            health: health.clone(),
        };
        let path = socket.clone();
        let agent = tokio::spawn(async move { run(&path, channels).await });
        Self {
            listener: Some(listener),
            socket,
            desired,
            renewals,
            connections,
            requests,
            reports,
            counters,
            health,
            agent,
        }
    }

    async fn accept(&self) -> Helper {
        let listener = self.listener.as_ref().expect("listening");
        let before = *self.connections.borrow();
        let (stream, _) = soon(listener.accept()).await.expect("a connection");
        let mut connections = self.connections.clone();
        soon(connections.wait_for(|number| *number > before)).await.expect("the agent runs");
        let (reader, writer) = stream.into_split();
        Helper { reader: BufReader::new(reader), writer }
    }

    async fn report(&mut self) -> Report {
        soon(self.reports.changed()).await.expect("the agent runs");
        self.reports.borrow_and_update().clone().expect("a report")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.agent.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Helper {
    async fn request(&mut self) -> Request {
        let mut line = String::new();
        soon(self.reader.read_line(&mut line)).await.expect("a line");
        serde_json::from_str(&line).expect("a message")
    }

    /// Generation of the next request, which is an update.
    async fn update(&mut self) -> i64 {
        match self.request().await {
            Request::Apply(update) => update.generation,
            other @ (Request::Renew(_) | Request::Counters(_)) => panic!("an update: {other:?}"),
        }
    }

    async fn send(&mut self, message: &Response) {
        let mut line = serde_json::to_vec(message).expect("a message");
        line.push(b'\n');
        self.send_raw(&line).await;
    }

    async fn report(&mut self, uid: &str, generation: i64) {
        self.send(&Response::Report(report(uid, generation))).await;
    }

    async fn send_raw(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("the agent reads");
    }

    async fn wait_for_disconnection(mut self) {
        let mut rest = Vec::new();
        soon(self.reader.read_to_end(&mut rest)).await.expect("an end");
    }
}

#[tokio::test]
async fn updates_and_reports_are_passed_on() {
    let mut fixture = Fixture::new("pass");
    let mut helper = fixture.accept().await;
    fixture.desired.send_replace(Some(update("a", 3)));
    assert_eq!(helper.update().await, 3);
    helper.report("a", 3).await;
    assert_eq!(fixture.report().await, report("a", 3));
    // Again and again for the same update, whenever the state changes.
    helper.report("a", 3).await;
    assert_eq!(fixture.report().await, report("a", 3));
}

#[tokio::test]
async fn nothing_is_sent_before_the_first_update() {
    let fixture = Fixture::new("nothing");
    let mut helper = fixture.accept().await;
    let mut byte = [0];
    let silence = timeout(Duration::from_millis(200), helper.reader.read(&mut byte)).await;
    assert!(silence.is_err(), "sent {silence:?}");
}

#[tokio::test]
async fn a_new_connection_gets_the_newest_update_only() {
    let fixture = Fixture::new("reconnect");
    fixture.desired.send_replace(Some(update("a", 1)));
    let mut helper = fixture.accept().await;
    assert_eq!(helper.update().await, 1);
    drop(helper);
    fixture.desired.send_replace(Some(update("a", 2)));
    fixture.desired.send_replace(Some(update("a", 3)));
    let mut helper = fixture.accept().await;
    assert_eq!(helper.update().await, 3);
    drop(helper);
    assert_eq!(fixture.accept().await.update().await, 3, "sent again although it did not change");
}

#[tokio::test]
async fn a_helper_that_starts_late_is_waited_for() {
    let mut fixture = Fixture::new("late");
    fixture.desired.send_replace(Some(update("a", 1)));
    fixture.listener = None;
    std::fs::remove_file(&fixture.socket).expect("the socket exists");
    // A failed attempt cannot be observed; without one, the test would pass, too.
    tokio::time::sleep(Duration::from_millis(100)).await;
    fixture.listener = Some(UnixListener::bind(&fixture.socket).expect("a socket"));
    assert_eq!(fixture.accept().await.update().await, 1);
}

#[tokio::test]
async fn reports_are_passed_on_in_order() {
    let mut fixture = Fixture::new("pairs");
    let mut helper = fixture.accept().await;
    for generation in [1, 2] {
        fixture.desired.send_replace(Some(update("a", generation)));
        assert_eq!(helper.update().await, generation);
    }
    helper.report("a", 1).await;
    assert_eq!(fixture.report().await, report("a", 1));
    helper.report("a", 2).await;
    assert_eq!(fixture.report().await, report("a", 2));
    // The generations of a recreated object start at 1 again.
    fixture.desired.send_replace(Some(update("b", 1)));
    assert_eq!(helper.update().await, 1);
    helper.report("b", 1).await;
    assert_eq!(fixture.report().await, report("b", 1));
}

#[tokio::test]
async fn a_report_for_an_update_of_an_earlier_agent_is_passed_on() {
    let mut fixture = Fixture::new("stranger");
    fixture.desired.send_replace(Some(update("a", 8)));
    let mut helper = fixture.accept().await;
    helper.report("a", 7).await;
    assert_eq!(fixture.report().await, report("a", 7), "its UID tells the publisher what it is about");
    assert_eq!(helper.update().await, 8);
    helper.report("a", 8).await;
    assert_eq!(fixture.report().await, report("a", 8));
}

#[tokio::test]
async fn a_rejection_does_not_end_the_connection() {
    let mut fixture = Fixture::new("rejected");
    fixture.desired.send_replace(Some(update("a", 1)));
    let mut helper = fixture.accept().await;
    assert_eq!(helper.update().await, 1);
    helper.send(&Response::Rejected("no".into())).await;
    helper.report("a", 1).await;
    assert_eq!(fixture.report().await, report("a", 1));
}

#[tokio::test]
async fn an_invalid_message_ends_the_connection_and_only_that() {
    let fixture = Fixture::new("garbage");
    for invalid in [&b"{\"report\":\n"[..], b"\n", b"{\"purge\":{}}\n", b"\xff\xfe\n"] {
        let mut helper = fixture.accept().await;
        helper.send_raw(invalid).await;
        helper.wait_for_disconnection().await;
    }
    fixture.desired.send_replace(Some(update("a", 1)));
    assert_eq!(fixture.accept().await.update().await, 1);
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let fixture = Fixture::new("oversize");
    let mut helper = fixture.accept().await;
    let piece = vec![b' '; 1 << 20];
    let mut sent = 0;
    while soon(helper.writer.write_all(&piece)).await.is_ok() {
        sent += piece.len();
        assert!(sent < 2 * MAX_MESSAGE, "it never stops reading");
    }
    fixture.desired.send_replace(Some(update("a", 1)));
    assert_eq!(fixture.accept().await.update().await, 1);
}

#[tokio::test]
async fn the_longest_line_is_accepted() {
    let mut fixture = Fixture::new("longest");
    fixture.desired.send_replace(Some(update("a", 1)));
    let mut helper = fixture.accept().await;
    assert_eq!(helper.update().await, 1);
    let mut line = serde_json::to_vec(&Response::Report(report("a", 1))).expect("a message");
    line.resize(MAX_MESSAGE, b' ');
    line.push(b'\n');
    helper.send_raw(&line).await;
    assert_eq!(fixture.report().await, report("a", 1));
}

#[tokio::test]
async fn reports_of_a_helper_that_does_not_read_are_received() {
    let mut fixture = Fixture::new("not-reading");
    let mut helper = fixture.accept().await;
    // More than the socket's buffers hold: the agent's write blocks.
    fixture.desired.send_replace(Some(with_spec("a", 1, json!({"text": "t".repeat(MAX_MESSAGE / 2)}))));
    // That the agent is blocked cannot be observed; if it were not yet, the test would pass, too.
    tokio::time::sleep(Duration::from_millis(50)).await;
    helper.report("a", 1).await;
    assert_eq!(fixture.report().await, report("a", 1));
}

#[tokio::test]
async fn an_update_that_is_too_long_is_not_sent() {
    let fixture = Fixture::new("too-long");
    let mut helper = fixture.accept().await;
    fixture.desired.send_replace(Some(with_spec("a", 1, json!({"text": "t".repeat(MAX_MESSAGE)}))));
    // An update that is not sent cannot be observed; if it were not processed yet, the test would pass, too.
    tokio::time::sleep(Duration::from_millis(50)).await;
    fixture.desired.send_replace(Some(update("a", 2)));
    assert_eq!(helper.update().await, 2);
}

#[tokio::test]
async fn requests_for_counters_follow_updates() {
    let mut fixture = Fixture::new("counters");
    let mut helper = fixture.accept().await;
    fixture.desired.send_replace(Some(update("a", 1)));
    fixture.requests.send_replace(1);
    // Whichever came first: a request never overtakes an update.
    assert_eq!(helper.update().await, 1);
    assert_eq!(helper.request().await, Request::Counters(1));
    let counters = Counters { request: 1, senders: vec![SenderCounters::default()], ..Counters::default() };
    helper.send(&Response::Counters(counters.clone())).await;
    soon(fixture.counters.changed()).await.expect("the agent runs");
    assert_eq!(fixture.counters.borrow_and_update().as_deref(), Some(&counters));
    // The report of the update is still to come.
    helper.report("a", 1).await;
    assert_eq!(fixture.report().await, report("a", 1));
    fixture.requests.send_replace(2);
    assert_eq!(helper.request().await, Request::Counters(2));
    fixture.desired.send_replace(Some(update("a", 2)));
    assert_eq!(helper.update().await, 2);
}

#[tokio::test]
async fn a_request_is_not_repeated_to_the_next_helper() {
    let fixture = Fixture::new("once");
    let mut helper = fixture.accept().await;
    fixture.requests.send_replace(1);
    assert_eq!(helper.request().await, Request::Counters(1));
    drop(helper);
    fixture.desired.send_replace(Some(update("a", 1)));
    let mut helper = fixture.accept().await;
    assert_eq!(helper.update().await, 1);
    fixture.requests.send_replace(2);
    assert_eq!(helper.request().await, Request::Counters(2));
}

#[tokio::test]
async fn ready_while_connected() {
    let mut fixture = Fixture::new("ready");
    let helper = fixture.accept().await;
    let health = fixture.health.clone();
    let becomes = async |ready| {
        while health.is_ready() != ready {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(becomes(true)).await;
    fixture.listener = None;
    std::fs::remove_file(&fixture.socket).expect("the socket exists");
    drop(helper);
    soon(becomes(false)).await;
}

#[tokio::test]
async fn only_an_update_that_has_just_arrived_has_the_clock_of_the_api_server() {
    let fixture = Fixture::new("clock");
    fixture.desired.send_replace(Some(update("a", 1)));
    let mut helper = fixture.accept().await;
    assert_eq!(helper.request().await, update("a", 1), "it may have arrived long before the connection");
    fixture.desired.send_replace(Some(update("a", 2)));
    let Request::Apply(DesiredUpdate { now: Some(now), .. }) = helper.request().await else { panic!("no clock") };
    let ahead = now.seconds() - UnixTime::from(std::time::SystemTime::now()).seconds();
    assert!((3500..3700).contains(&ahead), "{ahead} s");
    drop(helper);
    let mut helper = fixture.accept().await;
    assert_eq!(helper.request().await, update("a", 2), "nothing has confirmed it since");
}

#[tokio::test]
async fn a_renewal_follows_its_update_and_is_not_kept_for_the_next_helper() {
    let fixture = Fixture::new("renewal");
    let renewal = |uid: &str| Renewal { uid: uid.to_owned(), ..Renewal::default() };
    let mut helper = fixture.accept().await;
    fixture.renewals.send_replace(Some(renewal("a")));
    fixture.desired.send_replace(Some(update("a", 1)));
    assert_eq!(helper.update().await, 1);
    assert_eq!(helper.request().await, Request::Renew(renewal("a")));
    drop(helper);
    fixture.renewals.send_replace(Some(renewal("b")));
    let mut helper = fixture.accept().await;
    assert_eq!(helper.update().await, 1);
    fixture.renewals.send_replace(Some(renewal("c")));
    assert_eq!(helper.request().await, Request::Renew(renewal("c")));
}

/// Counts warnings.
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_tap_helper_that_starts_later_is_not_worth_a_warning() {
    let warnings = Arc::new(AtomicUsize::new(0));
    let _subscriber = tracing::subscriber::set_default(Warnings(Arc::clone(&warnings)));
    let mut fixture = Fixture::new("start");
    fixture.listener = None;
    std::fs::remove_file(&fixture.socket).expect("the socket exists");
    for (seconds, expected) in [(4, 0), (10, 1), (60, 1)] {
        sleep(Duration::from_secs(seconds)).await;
        assert_eq!(warnings.load(Ordering::Relaxed), expected, "after {seconds} more seconds");
    }
}
