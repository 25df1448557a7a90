//! A browser without a window, driven by `WebDriver` (W3C): Debian's packages chromium and chromium-driver.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{child::Killed, http, wait::until};

/// One browser at a time: each takes hundreds of megabytes, and a core while it starts.
static ONE: Mutex<()> = Mutex::new(());

/// How long a page may take for what it is asked for. A machine that runs all tests at once is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page, which ends when this is dropped.
pub struct Browser {
    driver: Killed,
    address: SocketAddr,
    session: String,
    profile: PathBuf,
    _one: MutexGuard<'static, ()>,
}

impl Browser {
    /// Starts it, with a window of 1280 by 800 pixels.
    ///
    /// # Panics
    /// If it is not installed, or does not start.
    #[must_use]
    pub fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let profile = env::temp_dir().join(format!("podtap-browser-{}-{number}", process::id()));
        fs::create_dir_all(&profile).expect("it can be made");
        let mut driver = Command::new("chromedriver");
        // A process group of its own, with the browser's processes.
        let driver = driver.arg("--port=0").process_group(0).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut driver = Killed(driver.expect("chromedriver runs: tests/prerequisites.sh installs it"));
        let mut lines = BufReader::new(driver.0.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        let port = |line: String| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok();
        let port = lines.by_ref().find_map(port);
        // It must not fail because what it prints is not read.
        thread::spawn(move || lines.for_each(drop));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.expect("it tells its port")));
        let mut browser = Self { driver, address, session: String::new(), profile, _one: one };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,800",
            "--force-color-profile=srgb",
        ];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
        arguments.push(format!("--user-data-dir={}", browser.profile.display()));
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments, "binary": "/usr/bin/chromium"},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let answer = browser.request("/session", &capabilities);
        browser.session = format!("/session/{}", answer["sessionId"].as_str().expect("it has an ID"));
        browser.command("/timeouts", &json!({"script": 30_000}));
        // What its own first page did is of no interest.
        browser.open("about:blank");
        let _ = (browser.errors(), browser.requests());
        browser
    }

    /// Value of the answer to a command.
    fn request(&self, path: &str, body: &Value) -> Value {
        let answer = http::post(self.address, path, "application/json", &body.to_string());
        let (status, text) = answer.expect("the driver answers");
        let answer: Value = serde_json::from_str(&text).expect("it answers in JSON");
        assert_eq!(status, 200, "{path} {body}: {}", answer["value"]["message"]);
        answer["value"].clone()
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.request(&format!("{}{path}", self.session), body)
    }

    /// Loads a page.
    pub fn open(&self, address: &str) {
        self.command("/url", &json!({"url": address}));
    }

    /// Runs a script, the body of a function. Returns its value.
    pub fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression has a value that is neither false nor nothing, and returns it.
    ///
    /// # Panics
    /// If it never has.
    #[track_caller]
    pub fn until(&self, expression: &str) -> Value {
        until(expression, PATIENCE, || match self.run(&format!("return {expression}")) {
            value @ (Value::Null | Value::Bool(false)) => Err(value),
            value => Ok(value),
        })
    }

    /// Texts of all elements that a selector finds.
    pub fn texts(&self, selector: &str) -> Vec<String> {
        let script =
            format!("return [...document.querySelectorAll({})].map((one) => one.textContent)", json!(selector));
        serde_json::from_value(self.run(&script)).expect("texts")
    }

    /// Clicks on the middle of the first element that a selector finds, as a mouse does.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.until(&format!("document.querySelector({}) !== null", json!(selector)));
        let element = self.command("/element", &json!({"using": "css selector", "value": selector}));
        let id = element.as_object().and_then(|element| element.values().next()).and_then(Value::as_str);
        self.command(&format!("/element/{}/click", id.expect("it has an ID")), &json!({}));
    }

    /// Clicks on a point of the window.
    pub fn click_at(&self, x: f64, y: f64) {
        let pointer = json!([{"type": "pointerMove", "duration": 0, "x": x.round(), "y": y.round()},
            {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]);
        self.command("/actions", &json!({"actions": [{"type": "pointer", "id": "mouse", "actions": pointer}]}));
    }

    /// Presses keys one after the other: characters, or names of keys in angle brackets, as `/cart<Enter>`.
    ///
    /// # Panics
    /// If a name is unknown.
    pub fn press(&self, keys: &str) {
        let mut actions = Vec::new();
        let mut press = |key: char| {
            actions.push(json!({"type": "keyDown", "value": key}));
            actions.push(json!({"type": "keyUp", "value": key}));
        };
        let mut rest = keys;
        while let Some(next) = rest.chars().next() {
            if let Some((name, behind)) = rest.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
                // https://www.w3.org/TR/webdriver2/#keyboard-actions
                press(match name {
                    "Tab" => '\u{e004}',
                    "Enter" => '\u{e007}',
                    "Escape" => '\u{e00c}',
                    "Left" => '\u{e012}',
                    "Up" => '\u{e013}',
                    "Right" => '\u{e014}',
                    "Down" => '\u{e015}',
                    other => panic!("no key {other}"),
                });
                rest = behind;
            } else {
                press(next);
                rest = &rest[next.len_utf8()..];
            }
        }
        self.command("/actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    /// A command of Chromium's own protocol.
    pub fn chromium(&self, command: &str, parameters: &Value) -> Value {
        self.command("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// The window as a PNG file.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn screenshot(&self) -> Vec<u8> {
        let answer = self.chromium("Page.captureScreenshot", &json!({"format": "png"}));
        BASE64_STANDARD.decode(answer["data"].as_str().expect("a picture")).expect("it is in base64")
    }

    /// What the page has reported since the last call: errors, and violations of its policy.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        let lines = self.command("/se/log", &json!({"type": "browser"}));
        lines.as_array().into_iter().flatten().map(|line| line["message"].to_string()).collect()
    }

    /// The addresses that were requested since the last call, but for the browser's own resources.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let lines = self.command("/se/log", &json!({"type": "performance"}));
        let message = |line: &Value| serde_json::from_str::<Value>(line["message"].as_str()?).ok();
        let messages = lines.as_array().into_iter().flatten().filter_map(message);
        let requests = messages.filter(|message| message["message"]["method"] == "Network.requestWillBeSent");
        let address = |message: Value| message["message"]["params"]["request"]["url"].as_str().map(str::to_owned);
        requests.filter_map(address).filter(|address| !address.starts_with("chrome://")).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser with its session.
        if !self.session.is_empty() {
            let _ = http::delete(self.address, &self.session);
        }
        if let Ok(group) = i32::try_from(self.driver.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.driver.0.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}
