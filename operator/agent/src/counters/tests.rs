use tokio::{task::JoinSet, time::Instant};

use super::*;

/// A desk whose tap-helper is the test.
struct Bench {
    desk: Desk,
    requests: watch::Receiver<u64>,
    answers: watch::Sender<Option<Arc<Counters>>>,
}

impl Bench {
    fn new() -> Self {
        let (desk, queue) = desk();
        let (asked, requests) = watch::channel(0);
        let answers = watch::Sender::new(None);
        tokio::spawn(run(queue, asked, answers.subscribe()));
        Self { desk, requests, answers }
    }

    async fn asked(&mut self) -> u64 {
        self.requests.changed().await.expect("it runs");
        *self.requests.borrow_and_update()
    }

    fn answer(&self, request: u64) {
        self.answers.send_replace(Some(Counters { request, senders: vec![] }.into()));
    }
}

// Time stands still, but for what is waited for.
#[tokio::test(start_paused = true)]
async fn those_who_ask_together_share_an_answer() {
    let mut bench = Bench::new();
    let mut askers = JoinSet::new();
    for _ in 0..5 {
        let desk = bench.desk.clone();
        askers.spawn(async move { desk.ask().await.map(|answer| answer.request) });
    }
    let request = bench.asked().await;
    bench.answer(request);
    let answers = askers.join_all().await;
    assert_eq!(answers, [Some(request); 5]);
    assert!(!bench.requests.has_changed().expect("it runs"), "nobody is left who wants to know");
}

#[tokio::test(start_paused = true)]
async fn who_asks_later_is_told_something_newer() {
    let mut bench = Bench::new();
    let ask = |bench: &Bench| {
        let desk = bench.desk.clone();
        tokio::spawn(async move { desk.ask().await.map(|answer| answer.request) })
    };
    let early = ask(&bench);
    let first = bench.asked().await;
    // The question is out: what it brings may have been read before this one.
    let late = ask(&bench);
    tokio::task::yield_now().await;
    bench.answer(first);
    assert_eq!(early.await.expect("it ends"), Some(first));
    let second = bench.asked().await;
    assert!(second > first);
    bench.answer(second);
    assert_eq!(late.await.expect("it ends"), Some(second));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_is_nobodys() {
    let mut bench = Bench::new();
    let began = Instant::now();
    assert_eq!(bench.desk.ask().await, None);
    assert_eq!(began.elapsed().as_secs(), DEADLINE.as_secs());
    let first = bench.asked().await;
    let desk = bench.desk.clone();
    let next = tokio::spawn(async move { desk.ask().await });
    let second = bench.asked().await;
    bench.answer(first);
    tokio::task::yield_now().await;
    assert!(!next.is_finished(), "that was to another question");
    bench.answer(second);
    assert_eq!(next.await.expect("it ends").map(|answer| answer.request), Some(second));
}

#[tokio::test(start_paused = true)]
async fn the_tap_helper_has_time_for_other_things() {
    let mut bench = Bench::new();
    let desk = bench.desk.clone();
    tokio::spawn(async move { while desk.ask().await.is_some() {} });
    let began = Instant::now();
    for _ in 0..20 {
        let request = bench.asked().await;
        bench.answer(request);
    }
    assert!(began.elapsed() >= PAUSE * 19, "{:?}", began.elapsed());
}
