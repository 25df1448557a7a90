use std::{collections::BTreeMap, path::PathBuf};

use tap_wire::{Desired, SenderCounters, ToHelper};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, unix::OwnedReadHalf},
    time::timeout,
};

use super::*;

/// A tap-helper under the test's control, and the agent's end that talks to it.
struct Bench {
    listener: Option<UnixListener>,
    socket: PathBuf,
    orders: watch::Sender<Option<Arc<Order>>>,
    requests: watch::Sender<u64>,
    answers: watch::Receiver<Option<Answer>>,
    counters: watch::Receiver<Option<Arc<Counters>>>,
    health: Health,
    agent: tokio::task::JoinHandle<()>,
}

/// One connection, seen from the tap-helper.
struct Helper {
    reading: BufReader<OwnedReadHalf>,
    writing: OwnedWriteHalf,
}

fn order(uid: &str, generation: i64) -> Arc<Order> {
    let origin = Origin { uid: uid.into(), generation, ..Origin::default() };
    let message = ToHelper::Desired(Desired { generation, ..Desired::default() });
    Arc::new(Order { origin: origin.into(), message, names: BTreeMap::new() })
}

fn report(generation: i64) -> FromHelper {
    FromHelper::Report(Report { generation, ..Report::default() })
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future).await.expect("happens soon")
}

impl Bench {
    fn new(name: &str) -> Self {
        let socket = std::env::temp_dir().join(format!("podtap-link-{name}-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&socket).expect("a socket in the temporary directory");
        let (orders, ordered) = watch::channel(None);
        let (requests, requested) = watch::channel(0);
        let (reported, answers) = watch::channel(None);
        let (counted, counters) = watch::channel(None);
        let health = Health::new(Duration::MAX);
        let ends =
            Ends { orders: ordered, requests: requested, answers: reported, counters: counted, health: health.clone() };
        let path = socket.clone();
        let agent = tokio::spawn(async move { run(&path, ends).await });
        Self { listener: Some(listener), socket, orders, requests, answers, counters, health, agent }
    }

    async fn accept(&self) -> Helper {
        let listener = self.listener.as_ref().expect("listening");
        let (stream, _) = soon(listener.accept()).await.expect("a connection");
        let (reading, writing) = stream.into_split();
        Helper { reading: BufReader::new(reading), writing }
    }

    async fn answer(&mut self) -> Answer {
        soon(self.answers.changed()).await.expect("the agent lives");
        self.answers.borrow_and_update().clone().expect("an answer")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.agent.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Helper {
    async fn told(&mut self) -> ToHelper {
        let mut line = String::new();
        soon(self.reading.read_line(&mut line)).await.expect("a line");
        serde_json::from_str(&line).expect("a message")
    }

    async fn ordered(&mut self) -> i64 {
        match self.told().await {
            ToHelper::Desired(desired) => desired.generation,
            other @ ToHelper::Counters(_) => panic!("an order: {other:?}"),
        }
    }

    async fn says(&mut self, message: &FromHelper) {
        let mut line = serde_json::to_vec(message).expect("a message");
        line.push(b'\n');
        self.raw(&line).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.writing.write_all(bytes).await.expect("the agent reads");
    }

    async fn sees_the_end(mut self) {
        let mut rest = Vec::new();
        soon(self.reading.read_to_end(&mut rest)).await.expect("an end");
    }
}

#[tokio::test]
async fn orders_and_reports_pass() {
    let mut bench = Bench::new("pass");
    let mut helper = bench.accept().await;
    bench.orders.send_replace(Some(order("a", 3)));
    assert_eq!(helper.ordered().await, 3);
    helper.says(&report(3)).await;
    let expected =
        Answer { origin: order("a", 3).origin.clone(), report: Report { generation: 3, ..Report::default() } };
    assert_eq!(bench.answer().await, expected);
    // Again and again for the same order, as things change.
    helper.says(&report(3)).await;
    assert_eq!(bench.answer().await, expected);
}

#[tokio::test]
async fn says_nothing_while_nothing_is_known() {
    let bench = Bench::new("nothing");
    let mut helper = bench.accept().await;
    let mut byte = [0];
    let silence = timeout(Duration::from_millis(200), helper.reading.read(&mut byte)).await;
    assert!(silence.is_err(), "sent {silence:?}");
}

#[tokio::test]
async fn a_new_connection_gets_the_newest_order_only() {
    let bench = Bench::new("reconnect");
    bench.orders.send_replace(Some(order("a", 1)));
    let mut helper = bench.accept().await;
    assert_eq!(helper.ordered().await, 1);
    drop(helper);
    bench.orders.send_replace(Some(order("a", 2)));
    bench.orders.send_replace(Some(order("a", 3)));
    let mut helper = bench.accept().await;
    assert_eq!(helper.ordered().await, 3);
    drop(helper);
    assert_eq!(bench.accept().await.ordered().await, 3, "sent again although it did not change");
}

#[tokio::test]
async fn waits_for_a_helper_that_starts_late() {
    let mut bench = Bench::new("late");
    bench.orders.send_replace(Some(order("a", 1)));
    bench.listener = None;
    std::fs::remove_file(&bench.socket).expect("the socket was there");
    // Nothing tells that an attempt has failed; without one, the test would pass as well.
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.listener = Some(UnixListener::bind(&bench.socket).expect("a socket"));
    assert_eq!(bench.accept().await.ordered().await, 1);
}

#[tokio::test]
async fn a_report_goes_with_the_order_it_answers() {
    let mut bench = Bench::new("pairs");
    let mut helper = bench.accept().await;
    for generation in [1, 2] {
        bench.orders.send_replace(Some(order("a", generation)));
        assert_eq!(helper.ordered().await, generation);
    }
    helper.says(&report(1)).await;
    assert_eq!(bench.answer().await.origin.generation, 1);
    helper.says(&report(2)).await;
    assert_eq!(bench.answer().await.origin.generation, 2);
    // An object that was made anew counts from 1 again.
    bench.orders.send_replace(Some(order("b", 1)));
    assert_eq!(helper.ordered().await, 1);
    helper.says(&report(1)).await;
    assert_eq!(bench.answer().await.origin, order("b", 1).origin);
}

#[tokio::test]
async fn a_report_on_an_order_of_an_earlier_agent_is_left_out() {
    let mut bench = Bench::new("stranger");
    bench.orders.send_replace(Some(order("a", 8)));
    let mut helper = bench.accept().await;
    helper.says(&report(7)).await;
    assert_eq!(helper.ordered().await, 8);
    helper.says(&report(8)).await;
    assert_eq!(bench.answer().await.report.generation, 8);
}

#[tokio::test]
async fn a_rejection_does_not_end_the_connection() {
    let mut bench = Bench::new("rejected");
    bench.orders.send_replace(Some(order("a", 1)));
    let mut helper = bench.accept().await;
    assert_eq!(helper.ordered().await, 1);
    helper.says(&FromHelper::Rejected("no".into())).await;
    helper.says(&report(1)).await;
    assert_eq!(bench.answer().await.report.generation, 1);
}

#[tokio::test]
async fn garbage_ends_the_connection_and_only_that() {
    let bench = Bench::new("garbage");
    for garbage in [&b"{\"report\":\n"[..], b"\n", b"{\"purge\":{}}\n", b"\xff\xfe\n"] {
        let mut helper = bench.accept().await;
        helper.raw(garbage).await;
        helper.sees_the_end().await;
    }
    bench.orders.send_replace(Some(order("a", 1)));
    assert_eq!(bench.accept().await.ordered().await, 1);
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let bench = Bench::new("oversize");
    let mut helper = bench.accept().await;
    let piece = vec![b' '; 1 << 20];
    let mut sent = 0;
    while soon(helper.writing.write_all(&piece)).await.is_ok() {
        sent += piece.len();
        assert!(sent < 2 * MAX_MESSAGE, "it reads on and on");
    }
    bench.orders.send_replace(Some(order("a", 1)));
    assert_eq!(bench.accept().await.ordered().await, 1);
}

#[tokio::test]
async fn the_longest_line_is_taken() {
    let mut bench = Bench::new("longest");
    bench.orders.send_replace(Some(order("a", 1)));
    let mut helper = bench.accept().await;
    assert_eq!(helper.ordered().await, 1);
    let mut line = serde_json::to_vec(&report(1)).expect("a message");
    line.resize(MAX_MESSAGE, b' ');
    line.push(b'\n');
    helper.raw(&line).await;
    assert_eq!(bench.answer().await.report.generation, 1);
}

#[tokio::test]
async fn a_helper_that_does_not_read_still_gets_its_reports_read() {
    let mut bench = Bench::new("deaf");
    let mut helper = bench.accept().await;
    // More than the socket's buffers hold: the agent's write hangs.
    let mut big = Desired { generation: 1, ..Desired::default() };
    let pod = tap_wire::Pod { uid: "p".into(), cgroup_uid: None, addresses: vec![] };
    big.senders.push(tap_wire::Sender::of_everything("t".repeat(MAX_MESSAGE / 2), pod, vec![]));
    let origin = order("a", 1).origin.clone();
    bench.orders.send_replace(Some(Arc::new(Order {
        origin,
        message: ToHelper::Desired(big),
        names: BTreeMap::new(),
    })));
    // Nothing tells that the agent is stuck in writing; were it not yet, the test would pass as well.
    tokio::time::sleep(Duration::from_millis(50)).await;
    helper.says(&report(1)).await;
    assert_eq!(bench.answer().await.report.generation, 1);
}

#[tokio::test]
async fn an_order_that_is_too_long_is_not_sent() {
    let bench = Bench::new("too-long");
    let mut helper = bench.accept().await;
    let mut big = order("a", 1).as_ref().clone();
    let ToHelper::Desired(desired) = &mut big.message else { panic!("it is an order") };
    desired.receivers.push(tap_wire::Receiver {
        tap: "t".repeat(MAX_MESSAGE),
        vni: 1,
        port: 1,
        ipv6: false,
        interface_name: "m".into(),
        raw: false,
        pod: None,
    });
    bench.orders.send_replace(Some(Arc::new(big)));
    // Nothing is heard of an order that is not sent; were it not looked at yet, the test would pass as well.
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.orders.send_replace(Some(order("a", 2)));
    assert_eq!(helper.ordered().await, 2);
}

#[tokio::test]
async fn requests_for_counters_go_between_orders_and_reports() {
    let mut bench = Bench::new("counters");
    let mut helper = bench.accept().await;
    bench.orders.send_replace(Some(order("a", 1)));
    bench.requests.send_replace(1);
    // Whichever came first: an order is not overtaken by a request.
    assert_eq!(helper.ordered().await, 1);
    assert_eq!(helper.told().await, ToHelper::Counters(1));
    let counters = Counters { request: 1, senders: vec![SenderCounters::default()] };
    helper.says(&FromHelper::Counters(counters.clone())).await;
    soon(bench.counters.changed()).await.expect("the agent lives");
    assert_eq!(bench.counters.borrow_and_update().as_deref(), Some(&counters));
    // The order is still waiting for its report.
    helper.says(&report(1)).await;
    assert_eq!(bench.answer().await.origin.generation, 1);
    bench.requests.send_replace(2);
    assert_eq!(helper.told().await, ToHelper::Counters(2));
    bench.orders.send_replace(Some(order("a", 2)));
    assert_eq!(helper.ordered().await, 2);
}

#[tokio::test]
async fn a_request_is_not_repeated_to_the_next_helper() {
    let bench = Bench::new("once");
    let mut helper = bench.accept().await;
    bench.requests.send_replace(1);
    assert_eq!(helper.told().await, ToHelper::Counters(1));
    drop(helper);
    bench.orders.send_replace(Some(order("a", 1)));
    let mut helper = bench.accept().await;
    assert_eq!(helper.ordered().await, 1);
    bench.requests.send_replace(2);
    assert_eq!(helper.told().await, ToHelper::Counters(2));
}

#[tokio::test]
async fn readiness_is_the_connection() {
    let mut bench = Bench::new("ready");
    let helper = bench.accept().await;
    let health = bench.health.clone();
    let becomes = async |ready| {
        while health.is_ready() != ready {
            sleep(Duration::from_millis(5)).await;
        }
    };
    soon(becomes(true)).await;
    bench.listener = None;
    std::fs::remove_file(&bench.socket).expect("the socket was there");
    drop(helper);
    soon(becomes(false)).await;
}
