use tokio::{task::JoinSet, time::Instant};

use super::*;

/// A queue whose tap-helper is the test.
struct Fixture {
    queue: Queue,
    requests: watch::Receiver<u64>,
    answers: watch::Sender<Option<Arc<Counters>>>,
}

impl Fixture {
    fn new() -> Self {
        let (queue, waiters) = queue();
        let (requested, requests) = watch::channel(0);
        let answers = watch::Sender::new(None);
        tokio::spawn(run(waiters, requested, answers.subscribe()));
        Self { queue, requests, answers }
    }

    async fn request(&mut self) -> u64 {
        self.requests.changed().await.expect("it runs");
        *self.requests.borrow_and_update()
    }

    fn answer(&self, request: u64) {
        self.answers.send_replace(Some(Counters { request, ..Counters::default() }.into()));
    }
}

// Paused time advances only while everything waits.
#[tokio::test(start_paused = true)]
async fn waiters_at_the_same_time_share_an_answer() {
    let mut fixture = Fixture::new();
    let mut waiters = JoinSet::new();
    for _ in 0..5 {
        let queue = fixture.queue.clone();
        waiters.spawn(async move { queue.wait().await.map(|answer| answer.request) });
    }
    let request = fixture.request().await;
    fixture.answer(request);
    let answers = waiters.join_all().await;
    assert_eq!(answers, [Ok(request); 5]);
    assert!(!fixture.requests.has_changed().expect("it runs"), "nobody waits any more");
}

#[tokio::test(start_paused = true)]
async fn a_later_waiter_gets_newer_counters() {
    let mut fixture = Fixture::new();
    let wait = |fixture: &Fixture| {
        let queue = fixture.queue.clone();
        tokio::spawn(async move { queue.wait().await.map(|answer| answer.request) })
    };
    let early = wait(&fixture);
    let first = fixture.request().await;
    // The request has been sent: the counters of its answer may have been read before the second waiter came.
    let late = wait(&fixture);
    tokio::task::yield_now().await;
    fixture.answer(first);
    assert_eq!(early.await.expect("it ends"), Ok(first));
    let second = fixture.request().await;
    assert!(second > first);
    fixture.answer(second);
    assert_eq!(late.await.expect("it ends"), Ok(second));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_discarded() {
    let mut fixture = Fixture::new();
    let began = Instant::now();
    assert_eq!(fixture.queue.wait().await, Err(NoAnswer));
    assert_eq!(began.elapsed().as_secs(), DEADLINE.as_secs());
    let first = fixture.request().await;
    let queue = fixture.queue.clone();
    let next = tokio::spawn(async move { queue.wait().await });
    let second = fixture.request().await;
    fixture.answer(first);
    tokio::task::yield_now().await;
    assert!(!next.is_finished(), "that answered another request");
    fixture.answer(second);
    assert_eq!(next.await.expect("it ends").map(|answer| answer.request), Ok(second));
}

#[tokio::test(start_paused = true)]
async fn requests_are_limited() {
    let mut fixture = Fixture::new();
    let queue = fixture.queue.clone();
    tokio::spawn(async move { while queue.wait().await.is_ok() {} });
    let began = Instant::now();
    for _ in 0..20 {
        let request = fixture.request().await;
        fixture.answer(request);
    }
    assert!(began.elapsed() >= PAUSE * 19, "{:?}", began.elapsed());
}

/// A scrape loop does not keep the tap-helper busy.
#[tokio::test(start_paused = true)]
async fn an_answer_that_took_long_is_given_to_later_waiters() {
    let mut fixture = Fixture::new();
    let wait = |fixture: &Fixture| {
        let queue = fixture.queue.clone();
        tokio::spawn(async move { queue.wait().await.map(|answer| answer.request) })
    };
    for (took, kept) in [(2, 5), (7, 9)] {
        let early = wait(&fixture);
        let request = fixture.request().await;
        sleep(Duration::from_secs(took)).await;
        fixture.answer(request);
        assert_eq!(early.await.expect("it ends"), Ok(request));
        sleep(Duration::from_secs(kept)).await;
        assert_eq!(wait(&fixture).await.expect("it ends"), Ok(request));
        assert!(!fixture.requests.has_changed().expect("it runs"), "not requested again");
        sleep(Duration::from_secs(2)).await;
    }
    let late = wait(&fixture);
    let request = fixture.request().await;
    fixture.answer(request);
    assert_eq!(late.await.expect("it ends"), Ok(request));
}
