//! The collector's page in a browser: what it shows is what was captured.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use podtap_tests::{browser::Browser, collector::Served, http, shop::CALLS, wait::PATIENCE};
use serde_json::Value;

use crate::{
    flood::waiting,
    invented::{Cluster, Connection, Files, shop},
};

/// A collector that has read a cluster's file, and its page in a browser.
struct Shown {
    browser: Browser,
    collector: Served,
    _files: Files,
}

impl Shown {
    fn new(cluster: &Cluster, fragment: &str) -> Self {
        let files = cluster.write();
        let collector = Served::start(&files.frames(), &files.names());
        let browser = Browser::start();
        browser.open(&format!("http://{}/{fragment}", collector.address));
        Self { browser, collector, _files: files }
    }

    /// Names of what is drawn, when the layout is done.
    fn nodes(&self) -> BTreeSet<String> {
        self.browser.until("document.querySelector('#map').dataset.state === 'ready'");
        self.browser.texts("#map .node .name").into_iter().collect()
    }

    /// Names of clients and servers of the edges that are drawn.
    fn edges(&self) -> BTreeSet<(String, String)> {
        self.nodes();
        let script = "const name = (id) => [...document.querySelectorAll('#map .node')].find((node) => node.dataset.id === id)\
            .querySelector('.name').textContent;
            return [...document.querySelectorAll('#map .edges path')].map((path) => path.dataset.id.split('>').map(name));";
        serde_json::from_value(self.browser.run(script)).expect("pairs of names")
    }

    /// The text in brackets of a class of calls.
    fn folded(&self, class: &str) -> String {
        let chip = format!("#folds [data-class={class}]");
        let text = self.browser.texts(&chip).into_iter().next().unwrap_or_default();
        text.split_once('(').map(|(_, rest)| rest.trim_end_matches(')').to_owned()).unwrap_or_default()
    }

    /// The values of the details that are open, by their names.
    fn detail(&self, name: &str) -> String {
        let script = format!(
            "[...document.querySelectorAll('#details dt')].find((dt) => dt.textContent === {name:?})?.nextElementSibling.textContent"
        );
        self.browser.until(&script).as_str().expect("text").to_owned()
    }

    /// That nothing went wrong, and nothing was asked for anywhere else.
    fn assert_clean(&self) {
        assert_eq!(self.browser.errors(), [""; 0]);
        let origin = format!("http://{}/", self.collector.address);
        let requests = self.browser.requests();
        assert!(requests.iter().any(|address| address.contains("/map?format=map")), "{requests:?}");
        for address in requests {
            assert!(address.starts_with(&origin), "{address}");
        }
    }
}

fn pairs(calls: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    calls.iter().map(|(client, server)| ((*client).to_owned(), (*server).to_owned())).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_map_is_what_was_captured_and_says_what_it_folds() {
    let cluster = shop();
    let shown = Shown::new(&cluster, "");
    let folded = [("paymentservice", "2 external peers"), ("emailservice", "2 external peers")]
        .into_iter()
        .chain(CALLS)
        .collect::<Vec<_>>();
    assert_eq!(shown.edges(), pairs(&folded));
    // Whose calls are folded is still there.
    let nodes = shown.nodes();
    assert!(nodes.contains("coredns") && nodes.contains("prometheus") && nodes.len() == 16, "{nodes:?}");
    let clients: BTreeSet<&str> =
        cluster.calls.iter().filter(|(_, server)| server == "coredns").map(|(c, _)| &**c).collect();
    let details = shown.browser.texts("#map .node .detail");
    for detail in [
        &*format!("Deployment · {} calls folded", clients.len()),
        "Deployment · 12 calls folded",
        "folded, with 12 calls",
    ] {
        assert!(details.iter().any(|text| text == detail), "{detail}: {details:?}");
    }
    assert_eq!(shown.folded("dns"), format!("{} calls", clients.len()));
    assert_eq!(shown.folded("monitoring"), "12 calls");
    assert_eq!(shown.folded("external"), "2, 2 calls");
    assert_eq!(shown.folded("node"), "1, 12 calls");

    for class in ["dns", "monitoring", "external", "node"] {
        shown.browser.click(&format!("#folds [data-class={class}]"));
        shown.browser.until(&format!("document.querySelector('#folds [data-class={class}]').ariaPressed === 'false'"));
    }
    assert_eq!(shown.edges(), cluster.calls);
    // The table has everything, whatever the picture folds.
    shown.browser.click("nav [data-view=calls]");
    shown.browser.until("document.querySelector('#calls-body tr') !== null");
    assert_eq!(shown.browser.texts("#calls-body tr").len(), cluster.calls.len());
    assert_eq!(shown.browser.texts("#calls-more"), [format!("{} calls", cluster.calls.len())]);
    // Sorted by any column, in both directions.
    let firsts = || shown.browser.texts("#calls-body td:first-child");
    shown.browser.click("#calls-head [data-sort=client]");
    shown.browser.until("document.querySelector('#calls-head th').ariaSort === 'ascending'");
    let ascending = firsts();
    assert!(ascending.is_sorted() && !ascending.is_empty(), "{ascending:?}");
    shown.browser.click("#calls-head [data-sort=client]");
    shown.browser.until("document.querySelector('#calls-head th').ariaSort === 'descending'");
    assert!(firsts().is_sorted_by(|a, b| a >= b));
    // Only calls from or to a namespace, and how many that leaves out.
    shown.browser.click("#namespaces summary");
    shown.browser.click("#namespaces input[value=kube-system]");
    shown.browser.until(&format!("document.querySelectorAll('#calls-body tr').length === {}", clients.len()));
    shown.browser.click("nav [data-view=map]");
    let hidden = cluster.calls.len() - clients.len();
    shown
        .browser
        .until(&format!("document.querySelector('#notices').textContent.includes('The filter hides {hidden} calls.')"));
    shown.assert_clean();
    shown.collector.end();
}

#[test]
fn the_page_of_a_namespace_has_one_end_for_all_others() {
    let shown = Shown::new(&shop(), "namespaces/kube-system/#unfold=dns&unfold=monitoring&unfold=node");
    let nodes = shown.nodes();
    assert!(nodes.contains("coredns") && nodes.contains("another namespace"), "{nodes:?}");
    assert!(!nodes.contains("frontend") && !nodes.contains("prometheus"), "{nodes:?}");
    assert!(shown.edges().contains(&("another namespace".to_owned(), "coredns".to_owned())));
    // Its flows are those of the namespace, too.
    shown.browser.click("nav [data-view=flows]");
    shown.browser.until("document.querySelector('#flows-body tr') !== null");
    let text = shown.browser.texts("#flows-body").concat();
    assert!(text.contains("coredns") && !text.contains("frontend"), "{text}");
    shown.assert_clean();
}

#[test]
fn the_keyboard_is_enough() {
    let shown = Shown::new(&shop(), "");
    let browser = &shown.browser;
    shown.nodes();
    // Search, and focus on what is found: its callers and what it calls, of which nothing is folded.
    browser.press("/cart");
    browser.until("document.querySelectorAll('#map .node.found').length === 2");
    assert_eq!(browser.texts("#matches button"), ["cartservice.boutique Deployment", "redis-cart.boutique Deployment"]);
    browser.press("<Enter>");
    browser.until("location.hash.includes('focus=')");
    browser.until("document.querySelectorAll('#map .node').length === 7");
    assert_eq!(
        shown.nodes(),
        names(&["cartservice", "checkoutservice", "coredns", "frontend", "n1", "prometheus", "redis-cart"])
    );
    // Arrow keys go to other nodes, and Enter opens them.
    browser.until("document.activeElement.closest('#map .node') !== null");
    browser.run("document.querySelector('#map .node.focus').focus()");
    browser.press("<Right>");
    let next = browser.run("return document.activeElement.querySelector('.name').textContent");
    assert!(next == "redis-cart" || next == "coredns", "{next}");
    browser.press("<Enter>");
    browser.until("document.querySelectorAll('#map .node').length <= 4 && document.querySelector('#map').dataset.state === 'ready'");
    browser.press("<Escape>");
    browser.until("!location.hash.includes('focus=')");
    assert_eq!(shown.nodes().len(), 16);
    // Each control can be reached with Tab, and the one that has the keyboard is visible.
    browser.run("document.activeElement.blur()");
    let mut reached = BTreeSet::new();
    for _ in 0..40 {
        browser.press("<Tab>");
        let at = browser.run(
            "const one = document.activeElement; const box = one.getBoundingClientRect();
             return one === document.body ? '' : `${one.id || one.dataset.view || one.dataset.class || one.closest('[id]').id} ${box.width > 0}`",
        );
        reached.insert(at.as_str().unwrap_or_default().to_owned());
    }
    for control in ["map", "calls", "flows", "search", "namespaces", "export", "theme", "dns", "external", "larger"] {
        assert!(reached.contains(&format!("{control} true")), "{control} is not among {reached:?}");
    }
    shown.assert_clean();
}

#[test]
fn an_edge_s_details_are_those_of_the_map() {
    let shown = Shown::new(&shop(), "#unfold=external&unfold=node");
    let browser = &shown.browser;
    shown.nodes();
    // In the middle of the curve from checkoutservice to emailservice, which refuses.
    let middle = browser.run(
        "const path = [...document.querySelectorAll('#map .edges path')].find((path) => /checkoutservice>.*emailservice/.test(path.dataset.id));
         const point = path.getPointAtLength(path.getTotalLength() / 2).matrixTransform(path.getScreenCTM());
         return [point.x, point.y, path.classList.contains('failing')];",
    );
    assert_eq!(middle[2], true, "a failing edge is marked");
    browser.click_at(middle[0].as_f64().expect("a number"), middle[1].as_f64().expect("a number"));
    shown.detail("Ports");
    let (status, map) = http::get(shown.collector.address, "/map?format=map").expect("an answer");
    assert_eq!(status, 200);
    let map: Value = serde_json::from_str(&map).expect("JSON");
    let is_it = |edge: &&Value| edge["client"]["name"] == "checkoutservice" && edge["server"]["name"] == "emailservice";
    let edge = map["edges"].as_array().expect("a list").iter().find(is_it).expect("it is in the map");
    // Number 11 of the calls: 4 connections, and 3 that were refused.
    let numbers = (&edge["connections"], &edge["failed"]["refused"], &edge["bytesSent"], &edge["bytesReceived"]);
    assert_eq!(numbers, (&7.into(), &3.into(), &13_200.into(), &1_210_000.into()), "{edge}");
    assert_eq!(edge["handshakes"]["meanUs"], 690, "{edge}: 590 µs, and 50 for each of two frames");
    assert_eq!(shown.detail("Connections"), "7");
    assert_eq!(shown.detail("Failed"), "refused 3");
    assert_eq!(shown.detail("Sent by the client"), "12.9 KiB");
    assert_eq!(shown.detail("Received"), "1.2 MiB");
    assert_eq!(shown.detail("Ports"), "TCP 80 (7 flows)");
    assert_eq!(shown.detail("Services"), "emailservice.boutique (7 flows)");
    assert!(shown.detail("Handshake").starts_with("mean 690 µs"), "{}", shown.detail("Handshake"));
    assert!(shown.detail("Last seen").starts_with("2026-01-01 "), "{}", shown.detail("Last seen"));
    assert!(shown.detail("Known by").contains("the endpoints of the service: 7 flows"));
    // What is open is in the address: another browser shows the same.
    let address = browser.run("return location.href");
    browser.open("about:blank");
    browser.open(address.as_str().expect("text"));
    assert_eq!(shown.detail("Failed"), "refused 3");
    shown.assert_clean();
}

#[test]
fn flows_are_filtered_and_exported() {
    let shown = Shown::new(&shop(), "#view=flows&limit=5000");
    let browser = &shown.browser;
    let rows = "document.querySelectorAll('#flows-body tr').length";
    let all = browser.until(&format!("{rows} > 100 && {rows}")).as_u64().expect("a number");
    browser.click("#field");
    browser.press("Failure<Tab><Tab>refused<Enter>");
    // The client's SYNs, and the server's answers.
    browser.until(&format!("{rows} === 6"));
    assert!(browser.texts("#flows-body td:last-child").iter().all(|state| state == "refused"));
    browser.click("#flow-filters button");
    browser.until(&format!("{rows} === {all}"));
    // From an edge to its flows.
    browser.click("nav [data-view=calls]");
    browser.run("[...document.querySelectorAll('#calls-body tr')].find((tr) => /^cartservice.*redis-cart/.test(tr.textContent)).querySelector('button').click()");
    browser.click("#edge-flows");
    // Number 16 of the calls: one connection, with two directions.
    browser.until(&format!("{rows} === 2"));
    browser.click("#flows-body button");
    browser.until("document.querySelector('#flows-body .all') !== null");
    assert!(browser.texts("#flows-body .all dt").contains(&"XlatDstK8S_OwnerName".to_owned()));

    browser.click("#export summary");
    browser.until("document.querySelectorAll('#export a').length === 10");
    let addresses =
        browser.run("return [...document.querySelectorAll('#export a')].map((link) => link.getAttribute('href'))");
    for address in serde_json::from_value::<Vec<String>>(addresses).expect("addresses") {
        let (status, text) = http::get(shown.collector.address, &format!("/{address}")).expect("an answer");
        assert!(status == 200 && text.contains("redis-cart"), "{address}: {status} {text}");
        if address.starts_with("flows") {
            assert_eq!(text.lines().count(), 2, "{text}");
        }
    }
    shown.assert_clean();
}

#[test]
fn colours_follow_the_system_or_the_choice() {
    let shown = Shown::new(&shop(), "");
    let browser = &shown.browser;
    shown.nodes();
    let prefer = |value: &str| {
        let features = serde_json::json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        browser.chromium("Emulation.setEmulatedMedia", &features);
    };
    let is_dark = "parseInt(getComputedStyle(document.body).backgroundColor.slice(4)) < 60";
    prefer("dark");
    browser.until(is_dark);
    prefer("light");
    browser.until(&format!("!({is_dark})"));
    browser.click("#theme");
    prefer("dark");
    browser.until(&format!("!({is_dark}) && location.hash.includes('theme=light')"));
    browser.click("#theme");
    prefer("light");
    browser.until(&format!("{is_dark} && location.hash.includes('theme=dark')"));
    shown.assert_clean();
}

#[test]
fn a_hostile_name_is_text() {
    const HOSTILE: &str = "<img src=x onerror=alert(1)><script src=//example.com/x></script>\"'`${1}&amp;\u{202e}";
    let mut cluster = Cluster::new();
    let (web, evil) = (cluster.workload("shop", "web"), cluster.workload(HOSTILE, HOSTILE));
    let external = cluster.external(HOSTILE);
    let connection = Connection { sent: 1, received: 1, handshake: 100 };
    cluster.call(&web, &evil, connection);
    cluster.call(&evil, &external, connection);
    cluster.lookup(&web, &evil, "<b>x</b>.example.com", evil.address);
    let shown = Shown::new(&cluster, "#unfold=external&unfold=dns");
    let browser = &shown.browser;
    assert_eq!(shown.edges().len(), 2);
    assert!(browser.texts("#map .group text").contains(&HOSTILE.to_owned()));
    browser.press("/onerror<Enter>");
    browser.until("document.querySelector('#details h2') !== null");
    assert!(browser.texts("#details h2").contains(&HOSTILE.to_owned()));
    for view in ["calls", "flows"] {
        browser.click(&format!("nav [data-view={view}]"));
        browser.until(&format!("document.querySelector('#{view}-body tr') !== null"));
        assert!(browser.texts(&format!("#{view}-body tr")).iter().any(|text| text.contains(HOSTILE)), "{view}");
    }
    browser.click("#flows-body button");
    assert_eq!(browser.run("return document.querySelectorAll('main img, main script, main b').length"), 0);
    // The browser's own guard, if a name ever reached a place where it would become HTML.
    let refused = browser.run("try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true }");
    assert_eq!(refused, true);
    assert!(browser.errors().iter().all(|error| error.contains("TrustedHTML")), "only what this test tried");
    shown.assert_clean();
}

/// A cluster with namespaces of so many workloads, each of which calls so many of its own namespace; every tenth calls one of another.
fn namespaces(count: usize, in_each: usize, calls: usize) -> Cluster {
    let mut cluster = Cluster::new();
    let mut parties = Vec::new();
    for namespace in 0..count {
        for number in 0..in_each {
            parties.push(cluster.workload(&format!("team-{namespace}"), &format!("service-{namespace}-{number}")));
        }
    }
    let mut random = 1_usize;
    let mut below = |end: usize| {
        random = random * 48_271 % 2_147_483_647;
        random % end
    };
    for (number, party) in parties.iter().enumerate() {
        let first = number / in_each * in_each;
        for _ in 0..calls {
            let other = &parties[first + below(in_each)];
            cluster.call(party, other, Connection { sent: 100, received: 2000, handshake: 200 });
        }
        if number % 10 == 0 {
            let other = &parties[below(parties.len())];
            cluster.call(party, other, Connection { sent: 100, received: 2000, handshake: 200 });
        }
    }
    cluster
}

#[test]
fn sixty_workloads_are_readable() {
    let cluster = namespaces(5, 12, 1);
    let shown = Shown::new(&cluster, "");
    assert_eq!(shown.edges(), cluster.calls);
    let browser = &shown.browser;
    let measured = browser.run(
        "const boxes = [...document.querySelectorAll('#map .node')].map((node) => node.querySelector('rect').getBoundingClientRect());
         const overlaps = boxes.filter((a, i) => boxes.some((b, j) => i < j && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
         const wide = [...document.querySelectorAll('#map .node')].filter((node) => node.querySelector('.name').getBBox().width > node.querySelector('rect').getBBox().width);
         const outside = boxes.filter((box) => box.left < 0 || box.top < 0 || box.right > innerWidth || box.bottom > innerHeight);
         const height = document.querySelector('#map .name').getBoundingClientRect().height;
         return [boxes.length, overlaps.length, wide.length, outside.length, height];",
    );
    println!("laid out in {} ms; names are {} pixels high", milliseconds(browser), measured[4]);
    assert_eq!(measured.as_array().expect("a list")[..4], [60, 0, 0, 0].map(Value::from), "{measured}");
    if let Some(file) = std::env::var_os("PODTAP_SCREENSHOT") {
        fs::write(file, browser.screenshot()).expect("it can be written");
    }
    assert!(measured[4].as_f64().is_some_and(|height| height >= 8.0), "{measured}");
    shown.assert_clean();
}

#[test]
fn two_thousand_workloads_are_usable() {
    const NAMESPACES: usize = 40;
    let cluster = namespaces(NAMESPACES, 50, 3);
    let shown = Shown::new(&cluster, "");
    let browser = &shown.browser;
    assert_eq!(shown.nodes().len(), NAMESPACES, "folded by namespace");
    let notices = browser.texts("#notices p");
    assert!(notices.iter().any(|text| text.starts_with("2,000 workloads are folded by namespace.")), "{notices:?}");
    let folded = milliseconds(browser);

    browser.click("#all");
    browser.until("document.querySelectorAll('#map .node').length === 2000 && document.querySelector('#map').dataset.state === 'ready'");
    assert_eq!(shown.browser.run("return document.querySelectorAll('#map .edges path').length"), cluster.calls.len());
    let all = milliseconds(browser);
    let frames = browser.run(PAN);
    println!(
        "2000 workloads, {} calls: laid out in {folded} ms by namespace, {all} ms without; frames of {frames} ms",
        cluster.calls.len()
    );
    // Far above what it takes, for a machine that runs all tests at once.
    assert!(all < 20_000 && frames[0].as_f64().is_some_and(|median| median < 500.0), "{all} {frames}");
    // Any of them is found.
    let start = Instant::now();
    browser.press("/service-37-41<Enter>");
    browser.until("document.querySelector('#map .node.focus .name')?.textContent === 'service-37-41'");
    println!("found and shown in {} ms", start.elapsed().as_millis());
    assert!(start.elapsed() < Duration::from_secs(20));
    shown.assert_clean();
}

/// How long the last layout took, until it was drawn.
fn milliseconds(browser: &Browser) -> u64 {
    browser.run("return Number(document.querySelector('#map').dataset.milliseconds)").as_u64().expect("a number")
}

/// Drags the map to and fro. Returns median and 95th percentile of the time between frames, in milliseconds.
const PAN: &str = "
    const map = document.querySelector('#map');
    const send = (type, x) => map.dispatchEvent(new PointerEvent(type, { pointerId: 1, button: 0, clientX: x, clientY: 400, bubbles: true }));
    map.setPointerCapture = () => {};
    return new Promise((resolve) => {
      const times = [];
      let last;
      send('pointerdown', 600);
      const frame = (now) => {
        if (last !== undefined) times.push(now - last);
        last = now;
        send('pointermove', 600 + 200 * Math.sin(times.length / 8));
        if (times.length < 90) requestAnimationFrame(frame);
        else {
          send('pointerup', 600);
          times.sort((a, b) => a - b);
          resolve([times[45], times[85]].map(Math.round));
        }
      };
      requestAnimationFrame(frame);
    });";

#[test]
fn what_comes_is_shown_where_the_user_looks() {
    let mut cluster = shop();
    let late = cluster.workload("boutique", "late");
    let files = cluster.write();
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let free =
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| socket.local_addr()).expect("a port").port();
    let collector = Served::live(free, &files.names());
    let browser = Browser::start();
    browser.open(&format!("http://{}/", collector.address));
    let shown = Shown { browser, collector, _files: files };
    let browser = &shown.browser;
    browser.until("document.querySelector('#empty').textContent.includes('No frame has arrived yet')");
    let send = |from: usize, cluster: &Cluster| {
        for frame in cluster.frames().skip(from) {
            let datagram = [&[8, 0, 0, 0, 0, 19, 137, 0][..], frame].concat();
            sender.send_to(&datagram, (Ipv4Addr::LOCALHOST, free)).expect("it can be sent");
            // The socket has room for some hundred.
            let start = Instant::now();
            while waiting(free) > 64 << 10 {
                assert!(start.elapsed() < PATIENCE, "the collector reads nothing");
                thread::yield_now();
            }
        }
    };
    send(0, &cluster);
    browser.until("document.querySelectorAll('#map .node').length === 16");
    // A new call appears, and the part of the map that one looks at stays.
    browser.run("document.querySelector('#map .node').focus()");
    browser.press("+++");
    let place = browser.run("return document.querySelector('.stage').style.transform");
    let before = cluster.frames().count();
    let frontend = cluster.party("frontend");
    cluster.call(&frontend, &late, Connection { sent: 1, received: 1, handshake: 100 });
    send(before, &cluster);
    browser.until("[...document.querySelectorAll('#map .name')].some((name) => name.textContent === 'late')");
    assert_eq!(browser.run("return document.querySelector('.stage').style.transform"), place);
    assert_eq!(browser.run("return document.activeElement.classList.contains('node')"), true);
    let figures = browser.texts("#figures");
    assert!(figures[0].starts_with("15 workloads · 50 calls") && figures[0].contains(" 0 dropped"), "{figures:?}");
    shown.assert_clean();
}

#[test]
fn an_empty_map_and_a_collector_that_is_gone_are_explained() {
    let shown = Shown::new(&Cluster::new(), "");
    let browser = &shown.browser;
    browser.until("document.querySelector('#empty').textContent.includes('The files have no connections.')");
    shown.assert_clean();
    let Shown { browser, collector, _files } = shown;
    collector.end();
    browser.until("document.querySelector('#alert').textContent.includes('The collector cannot be reached')");
}

#[test]
fn losses_are_said() {
    let shown = Shown::new(&shop(), "");
    let browser = &shown.browser;
    shown.nodes();
    assert_eq!(browser.texts("#notices p"), [""; 0], "nothing is lost in a file");
    // What a collector says that does not keep up, and then does.
    browser.run(
        "const real = fetch;
         window.lost = { framesDropped: 7, captured: 'filtered', framesLeftOut: 640, flowsEvicted: 2, recentTcpFlows: 90, recentTcpFlowsIncomplete: 4, namesComplete: false };
         window.fetch = async (path, options) => {
           const answer = await real(path, options);
           return path === 'status' ? new Response(JSON.stringify({ ...await answer.json(), ...lost })) : answer;
         };",
    );
    let notices = "document.querySelector('#notices').textContent";
    browser.until(&format!("{notices}.includes('does not keep up: 7 frames were dropped in the last seconds')"));
    for part in [
        "About 640 frames were left out",
        "Of 90 recent TCP flows, 4 lack frames",
        "2 flows were forgotten early",
        "not complete yet",
    ] {
        browser.until(&format!("{notices}.includes({part:?})"));
    }
    browser.until(&format!("{notices}.includes('7 frames were dropped by the kernel since the collector started')"));
    shown.assert_clean();
}

#[test]
fn the_picture_of_the_demo_has_the_map() {
    let pictures = [Cluster::new(), shop()].map(|cluster| {
        let files = cluster.write();
        let collector = Served::start(&files.frames(), &files.names());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/picture.sh");
        let file = files.frames().with_extension("png");
        let status = Command::new(script).arg(format!("http://{}/", collector.address)).arg(&file).status();
        assert!(status.expect("it runs").success());
        let picture = fs::read(file).expect("it was written");
        assert_eq!(picture[16..24], [0, 0, 5, 0, 0, 0, 3, 32], "1280 by 800 pixels");
        picture.len()
    });
    assert!(pictures[1] > 2 * pictures[0], "{pictures:?}");
}

#[test]
#[ignore = "writes the pictures of docs/collector.md: make pictures"]
fn pictures() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pictures");
    fs::create_dir_all(&directory).expect("it can be made");
    let shown = Shown::new(&shop(), "");
    for theme in ["light", "dark"] {
        let edge = "Deployment/boutique/checkoutservice>Deployment/boutique/emailservice";
        shown.browser.open("about:blank");
        shown.browser.open(&format!("http://{}/#theme={theme}&edge={edge}&unfold=external", shown.collector.address));
        shown.nodes();
        shown.detail("Ports");
        // Painted, after the layout.
        shown.browser.run(
            "return new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve(1))))",
        );
        let file = directory.join(format!("map-{theme}.png"));
        fs::write(&file, shown.browser.screenshot()).expect("it can be written");
    }
}
