//! An API server that records requests, and a function that answers them.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// By name, in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

impl Request {
    pub fn is_watch(&self) -> bool {
        self.target.contains("watch=true")
    }
}

/// What is answered.
pub enum Answer {
    Object(u16, Value),
    /// Nothing, as long as the client waits.
    Silence,
}

/// Runs until the test ends.
pub struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, recorded) = (Arc::new(answer), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, recorded) = (Arc::clone(&answer), Arc::clone(&recorded));
                thread::spawn(move || serve(stream, &recorded, &*answer));
            }
        });
        Self { address, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic before").clone()
    }

    /// A kubeconfig with the contexts `main`, of this server and the namespace `shop`, and `other`, of a server that does not exist.
    pub fn kubeconfig(&self) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kubeconfig-{number}"));
        let context =
            |name: &str| json!({"name": name, "context": {"cluster": name, "user": name, "namespace": "shop"}});
        let user = |name: &str| json!({"name": name, "user": {"token": format!("token-of-{name}")}});
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "main",
            "contexts": [context("main"), context("other")],
            "users": [user("main"), user("other")],
            "clusters": [
                {"name": "main", "cluster": {"server": format!("http://{}", self.address)}},
                {"name": "other", "cluster": {"server": "http://127.0.0.1:1"}},
            ],
        });
        fs::write(&path, config.to_string()).expect("it can be written");
        path
    }

    /// The program with this server as its cluster.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-podtap"));
        command.env("KUBECONFIG", self.kubeconfig()).args(words).stdin(Stdio::null());
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program runs")
    }
}

fn serve(stream: TcpStream, recorded: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let request = Request { method, target, headers, body: serde_json::from_slice(&body).unwrap_or_default() };
    let answer = answer(&request);
    recorded.lock().expect("no panic before").push(request);
    let mut stream = reader.into_inner();
    match answer {
        Answer::Object(status, object) => {
            let body = object.to_string();
            let head = format!(
                "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // A client that has been stopped does not read it.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        }
        Answer::Silence => {
            let _ = stream.read(&mut [0]);
        }
    }
}
