use std::{path::Path, time::Duration};

use podtap_model::{NodeStatus, Response};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::*;

fn update(generation: i64) -> DesiredUpdate {
    DesiredUpdate { uid: Some("a".into()), generation, now: None, spec: json!({"senders": []}) }
}

fn listen(name: &str) -> (UnixListener, PathBuf) {
    let socket = std::env::temp_dir().join(format!("podtap-client-{name}-{}.sock", std::process::id()));
    (UnixListener::bind(&socket).expect("a socket in the temporary directory"), socket)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future).await.expect("happens soon")
}

/// The connection of the client, once the socket is not needed any more.
async fn accept(listener: UnixListener, socket: &Path) -> BufReader<UnixStream> {
    let (stream, _) = soon(listener.accept()).await.expect("a connection");
    std::fs::remove_file(socket).expect("the socket exists");
    BufReader::new(stream)
}

async fn request(stream: &mut BufReader<UnixStream>) -> Option<Request> {
    let mut line = String::new();
    let length = soon(stream.read_line(&mut line)).await.expect("a line");
    (length > 0).then(|| match serde_json::from_str(&line).expect("a request") {
        // Tests of the connection are about the clock.
        Request::Apply(update) => Request::Apply(DesiredUpdate { now: None, ..update }),
        request => request,
    })
}

async fn respond(stream: &mut BufReader<UnixStream>, response: &Response) {
    let line = serde_json::to_string(response).expect("JSON") + "\n";
    stream.write_all(line.as_bytes()).await.expect("the client reads");
}

#[tokio::test]
async fn updates_reports_and_counters() {
    let (listener, socket) = listen("all");
    let client = HelperClient::connect(socket.clone(), ServerClock::default(), Health::new(Duration::MAX));
    assert_eq!(client.read_desired(|update| update.generation), None);
    let mut stream = accept(listener, &socket).await;
    client.apply(update(3));
    assert_eq!(request(&mut stream).await, Some(Request::Apply(update(3))));
    assert_eq!(client.read_desired(|update| update.generation), Some(3));

    let mut reports = client.reports();
    let status = NodeStatus { observed_generation: Some(3), ..NodeStatus::default() };
    let report = Report { uid: Some("a".into()), status };
    respond(&mut stream, &Response::Report(report.clone())).await;
    soon(reports.changed()).await.expect("the client runs");
    assert_eq!(*reports.borrow_and_update(), Some(report));

    let serve = async {
        let Some(Request::Counters(request)) = request(&mut stream).await else { panic!("a request for counters") };
        respond(&mut stream, &Response::Counters(Counters { request, ..Counters::default() })).await;
        request
    };
    let (counters, request) = tokio::join!(client.counters(), serve);
    assert_eq!(counters.map(|counters| counters.request), Ok(request));
}

#[tokio::test]
async fn the_same_update_is_sent_once() {
    let (listener, socket) = listen("once");
    let client = HelperClient::connect(socket.clone(), ServerClock::default(), Health::new(Duration::MAX));
    let mut stream = accept(listener, &socket).await;
    client.apply(update(1));
    assert_eq!(request(&mut stream).await, Some(Request::Apply(update(1))));
    client.apply(update(1));
    client.apply(update(2));
    assert_eq!(request(&mut stream).await, Some(Request::Apply(update(2))));
}

#[tokio::test]
async fn a_dropped_client_disconnects() {
    let (listener, socket) = listen("drop");
    let client = HelperClient::connect(socket.clone(), ServerClock::default(), Health::new(Duration::MAX));
    let mut stream = accept(listener, &socket).await;
    drop(client);
    assert_eq!(request(&mut stream).await, None);
}
