use futures::channel::mpsc;
use serde_json::json;
use tap_wire::ToHelper;
use tokio::time::{advance, sleep};

use super::*;

struct Bench {
    events: mpsc::UnboundedSender<watcher::Result<Event<RawNodeTap>>>,
    orders: watch::Receiver<Option<Arc<Order>>>,
    seen: watch::Receiver<Option<Seen>>,
}

fn bench() -> Bench {
    let (events, stream) = mpsc::unbounded();
    let outlets = Outlets::new();
    let bench = Bench { events, orders: outlets.orders.subscribe(), seen: outlets.seen.subscribe() };
    tokio::spawn(async move { follow(stream, &outlets).await });
    bench
}

impl Bench {
    /// Sends events and lets them be worked on.
    async fn events(&self, events: impl IntoIterator<Item = Event<RawNodeTap>>) {
        for event in events {
            self.events.unbounded_send(Ok(event)).expect("somebody listens");
        }
        sleep(Duration::from_millis(1)).await;
    }

    /// Generation of the order in force, and whether it is new since the last look.
    fn order(&mut self) -> (Option<i64>, bool) {
        let new = self.orders.has_changed().expect("somebody gives orders");
        let generation = self.orders.borrow_and_update().as_ref().map(|order| {
            let ToHelper::Desired(desired) = &order.message else { panic!("an order: {order:?}") };
            desired.generation
        });
        (generation, new)
    }
}

fn object(uid: &str, generation: i64, version: &str) -> RawNodeTap {
    let object = json!({"metadata": {"name": "n1", "uid": uid, "generation": generation, "resourceVersion": version},
        "spec": {"senders": [], "receivers": []}});
    serde_json::from_value(object).expect("an object")
}

#[tokio::test(start_paused = true)]
async fn nothing_is_ordered_before_the_list_is_complete() {
    let mut bench = bench();
    bench.events([Event::Init]).await;
    advance(GRACE * 10).await;
    assert_eq!(bench.order(), (None, false));
}

#[tokio::test(start_paused = true)]
async fn errors_order_nothing() {
    let mut bench = bench();
    bench.events.unbounded_send(Err(watcher::Error::NoResourceVersion)).expect("somebody listens");
    advance(GRACE * 10).await;
    assert_eq!(bench.order(), (None, false));
}

#[tokio::test(start_paused = true)]
async fn the_object_is_ordered_before_the_list_is_complete() {
    let mut bench = bench();
    bench.events([Event::Init, Event::InitApply(object("a", 4, "10"))]).await;
    assert_eq!(bench.order(), (Some(4), true));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_status_alone_orders_nothing_new() {
    let mut bench = bench();
    bench.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    bench.order();
    bench.events([Event::Apply(object("a", 4, "11"))]).await;
    assert_eq!(bench.order(), (Some(4), false));
    assert_eq!(bench.seen.borrow().as_ref().map(|seen| seen.version.clone()), Some("11".into()));
    bench.events([Event::Apply(object("a", 5, "12"))]).await;
    assert_eq!(bench.order(), (Some(5), true));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_never_was_there_is_an_order_to_remove_all() {
    let mut bench = bench();
    bench.events([Event::Init, Event::InitDone]).await;
    assert_eq!(bench.order(), (None, false), "not at once");
    sleep(GRACE).await;
    assert_eq!(bench.order(), (Some(0), true));
    assert_eq!(bench.orders.borrow().as_deref(), Some(&Order::nothing()));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_object_is_an_order_to_remove_all() {
    let mut bench = bench();
    bench.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    bench.order();
    bench.events([Event::Delete(object("a", 4, "11"))]).await;
    assert_eq!(*bench.seen.borrow(), None, "nothing to write into");
    assert_eq!(bench.order(), (Some(4), false), "the mirrors go on");
    sleep(GRACE).await;
    assert_eq!(bench.order(), (Some(0), true));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_comes_back_soon_interrupts_nothing() {
    let mut bench = bench();
    bench.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    bench.order();
    bench.events([Event::Delete(object("a", 4, "11"))]).await;
    sleep(GRACE / 2).await;
    bench.events([Event::Apply(object("b", 1, "12"))]).await;
    sleep(GRACE * 2).await;
    assert_eq!(bench.order(), (Some(1), true));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_missing_in_a_later_list_counts_as_deleted() {
    let mut bench = bench();
    bench.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    bench.order();
    bench.events([Event::Init]).await;
    sleep(GRACE * 2).await;
    assert_eq!(bench.order(), (Some(4), false), "the list is not complete");
    bench.events([Event::InitDone]).await;
    sleep(GRACE).await;
    assert_eq!(bench.order(), (Some(0), true));
}
