use futures::channel::mpsc;
use podtap_model::{DesiredUpdate, Request};
use podtap_runtime::{clock::ServerClock, http::Health};
use serde_json::json;
use tokio::time::{advance, sleep};

use super::*;
use crate::helper_client::Channels;

/// The watch of the node n1, with a client that is not connected.
struct Fixture {
    events: mpsc::UnboundedSender<watcher::Result<Event<RawNodeTap>>>,
    channels: Channels,
    last_status: watch::Receiver<Option<LastStatus>>,
}

fn fixture() -> Fixture {
    let (events, stream) = mpsc::unbounded();
    let (client, channels) = HelperClient::without_connection(ServerClock::default(), Health::new(Duration::MAX));
    let (sender, last_status) = watch::channel(None);
    tokio::spawn(async move { process(stream, "n1", &client, &sender).await });
    Fixture { events, channels, last_status }
}

impl Fixture {
    /// Sends events and lets them be processed.
    async fn events(&self, events: impl IntoIterator<Item = Event<RawNodeTap>>) {
        for event in events {
            self.events.unbounded_send(Ok(event)).expect("the watch runs");
        }
        sleep(Duration::from_millis(1)).await;
    }

    /// Generation of the newest update, and whether it is new since the last call.
    fn update(&mut self) -> (Option<i64>, bool) {
        let is_new = self.channels.desired.has_changed().expect("the client exists");
        let generation = self.channels.desired.borrow_and_update().as_ref().map(|request| match request {
            Request::Apply(update) => update.generation,
            Request::Renew(_) | Request::Counters(_) => panic!("an update: {request:?}"),
        });
        (generation, is_new)
    }
}

fn object(uid: &str, generation: i64, resource_version: &str) -> RawNodeTap {
    let object = json!({
        "metadata": {"name": "n1", "uid": uid, "generation": generation, "resourceVersion": resource_version},
        "spec": {"senders": [], "receivers": []},
    });
    serde_json::from_value(object).expect("an object")
}

#[tokio::test(start_paused = true)]
async fn nothing_is_applied_before_the_list_is_complete() {
    let mut fixture = fixture();
    fixture.events([Event::Init]).await;
    advance(GRACE * 10).await;
    assert_eq!(fixture.update(), (None, false));
}

#[tokio::test(start_paused = true)]
async fn errors_apply_nothing() {
    let mut fixture = fixture();
    fixture.events.unbounded_send(Err(watcher::Error::NoResourceVersion)).expect("the watch runs");
    advance(GRACE * 10).await;
    assert_eq!(fixture.update(), (None, false));
}

#[tokio::test(start_paused = true)]
async fn the_object_is_applied_before_the_list_is_complete() {
    let mut fixture = fixture();
    fixture.events([Event::Init, Event::InitApply(object("a", 4, "10"))]).await;
    assert_eq!(fixture.update(), (Some(4), true));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_status_alone_is_no_new_update() {
    let mut fixture = fixture();
    fixture.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    fixture.update();
    fixture.events([Event::Apply(object("a", 4, "11"))]).await;
    assert_eq!(fixture.update(), (Some(4), false));
    assert_eq!(fixture.last_status.borrow().as_ref().map(|status| status.resource_version.clone()), Some("11".into()));
    fixture.events([Event::Apply(object("a", 5, "12"))]).await;
    assert_eq!(fixture.update(), (Some(5), true));
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_removes_everything_after_the_grace_period() {
    let mut fixture = fixture();
    fixture.events([Event::Init, Event::InitDone]).await;
    assert_eq!(fixture.update(), (None, false), "not at once");
    sleep(GRACE).await;
    assert_eq!(fixture.update(), (Some(0), true));
    let removal = DesiredUpdate { uid: None, generation: 0, now: None, spec: json!({}) };
    assert_eq!(*fixture.channels.desired.borrow(), Some(Request::Apply(removal)));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_object_removes_everything_after_the_grace_period() {
    let mut fixture = fixture();
    fixture.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    fixture.update();
    fixture.events([Event::Delete(object("a", 4, "11"))]).await;
    assert_eq!(*fixture.last_status.borrow(), None, "there is no object to write to");
    assert_eq!(fixture.update(), (Some(4), false), "the mirrors stay");
    sleep(GRACE).await;
    assert_eq!(fixture.update(), (Some(0), true));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_recreated_soon_interrupts_nothing() {
    let mut fixture = fixture();
    fixture.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    fixture.update();
    fixture.events([Event::Delete(object("a", 4, "11"))]).await;
    sleep(GRACE / 2).await;
    fixture.events([Event::Apply(object("b", 1, "12"))]).await;
    sleep(GRACE * 2).await;
    assert_eq!(fixture.update(), (Some(1), true));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_missing_in_a_later_list_was_deleted() {
    let mut fixture = fixture();
    fixture.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitDone]).await;
    fixture.update();
    fixture.events([Event::Init]).await;
    sleep(GRACE * 2).await;
    assert_eq!(fixture.update(), (Some(4), false), "the list is not complete");
    fixture.events([Event::InitDone]).await;
    sleep(GRACE).await;
    assert_eq!(fixture.update(), (Some(0), true));
}

#[tokio::test(start_paused = true)]
async fn the_spec_is_passed_on_as_it_is() {
    let mut fixture = fixture();
    let mut node_tap = object("a", 4, "10");
    node_tap.spec = json!({"taps": [{"uid": "t1", "colour": "red"}], "senders": ["?"], "sampleEverything": true});
    let update = DesiredUpdate { uid: Some("a".into()), generation: 4, now: None, spec: node_tap.spec.clone() };
    fixture.events([Event::Init, Event::InitApply(node_tap)]).await;
    assert_eq!(*fixture.channels.desired.borrow_and_update(), Some(Request::Apply(update)));
}

#[tokio::test(start_paused = true)]
async fn objects_of_other_nodes_are_ignored() {
    let mut fixture = fixture();
    let mut other = object("b", 9, "11");
    other.metadata.name = Some("n2".into());
    fixture.events([Event::Init, Event::InitApply(object("a", 4, "10")), Event::InitApply(other.clone())]).await;
    fixture.events([Event::InitDone, Event::Apply(other.clone())]).await;
    assert_eq!(fixture.update(), (Some(4), true));
    fixture.events([Event::Delete(other)]).await;
    sleep(GRACE * 2).await;
    assert_eq!(fixture.update(), (Some(4), false), "this node's object still exists");
}

/// An update without a UID means that there is no object.
#[tokio::test(start_paused = true)]
async fn an_object_without_uid_or_generation_is_not_applied() {
    let mut fixture = fixture();
    let (mut without_uid, mut without_generation) = (object("a", 4, "10"), object("a", 4, "10"));
    without_uid.metadata.uid = None;
    without_generation.metadata.generation = None;
    fixture
        .events([Event::Init, Event::InitApply(without_uid), Event::InitDone, Event::Apply(without_generation)])
        .await;
    sleep(GRACE * 2).await;
    assert_eq!(fixture.update(), (None, false));
}
