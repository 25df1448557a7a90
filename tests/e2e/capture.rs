//! `kubectl podtap capture`: frames of pods in a file, and nothing in the cluster after any end of it.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::ResourceExt as _;
use nix::sys::signal::Signal;
use podtap_api::PodTap;
use podtap_tests::{
    capture::Capture,
    child::{Killed, signal},
    cluster::{Cluster, traces},
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::{
    processes::Stopped,
    scene::{Scene, address},
};

/// A user with the cluster role `podtap-capture`, and nothing else.
const USER: [&str; 4] = ["--as", "alice", "--as-group", "capture-team"];
/// How long after the end of a capture nothing may be left.
const LEFT: Duration = Duration::from_secs(20);

/// A namespace that enforces `restricted`, in which the user may capture. Pods from before stay.
fn restricted(test: &str) -> Scene {
    restrict(Scene::new(test))
}

fn restrict(scene: Scene) -> Scene {
    let namespace = scene.sandbox.namespace();
    let level = "pod-security.kubernetes.io/enforce=restricted";
    let bound = ["create", "rolebinding", "capture", "--clusterrole=podtap-capture", "--group=capture-team"];
    for words in [&["label", "namespace", namespace, level, "--overwrite"], &bound[..]] {
        scene.sandbox.kubectl(words, "").expect("an administrator can do that");
    }
    until("the user may create jobs", PATIENCE, || {
        let may = ["auth", "can-i", "create", "jobs"];
        scene.sandbox.kubectl(&[&may[..], &USER].concat(), "")
    });
    scene
}

/// `kubectl podtap capture WORDS` as the user, with a folder of programs before all others.
fn command(scene: &Scene, folder: &Path, kubeconfig: Option<&Path>, words: &[&str]) -> Command {
    let lab = Cluster::lab();
    let default = lab.top().join("target/lab/kubeconfig");
    let mut command = verb(scene, "capture", kubeconfig.unwrap_or(&default));
    let path = format!("{}:{}", folder.display(), env::var("PATH").unwrap_or_default());
    command.env("PATH", path).arg("-y").args(words).stdout(Stdio::null());
    command
}

/// A verb of the program, in the namespace and as the user.
fn verb(scene: &Scene, verb: &str, kubeconfig: &Path) -> Command {
    let mut command = Command::new(Cluster::lab().top().join("target/lab/bin/kubectl-podtap"));
    command.args([verb, "-n", scene.sandbox.namespace()]).args(USER);
    command.env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    command
}

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("podtap-capture-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("it can be created");
        Self(path)
    }

    /// A program.
    fn program(&self, name: &str, script: &str) {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be executed");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Pings the web server while this exists.
struct Traffic(Arc<AtomicBool>);

impl Traffic {
    fn start(scene: &Scene) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let script = format!("ping -q -c 5 -i 0.1 {} >/dev/null", address(&scene.web));
        let (stopped, sandbox) = (Arc::clone(&stop), scene.sandbox.namespace().to_owned());
        thread::spawn(move || {
            let words = ["-n", &sandbox, "exec", "client", "--", "sh", "-c", &script];
            while !stopped.load(Ordering::Relaxed) {
                // While the API server does not answer, the others have the cores.
                if Cluster::lab().kubectl(&words, "").is_err() {
                    thread::sleep(Duration::from_millis(200));
                }
            }
        });
        Self(stop)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fields of the frames of a file, as tshark shows them.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// What is left of captures in a namespace: objects, and parts of taps at the pod.
fn left(scene: &Scene) -> Vec<String> {
    objects(scene).into_iter().chain(traces(&scene.sandbox.network(&scene.web))).collect()
}

/// The objects of captures in a namespace.
fn objects(scene: &Scene) -> Vec<String> {
    let (lab, namespace) = (scene.sandbox.lab(), scene.sandbox.namespace());
    let jobs = lab.list::<Job>(namespace).into_iter().map(|job| format!("job {}", job.name_any()));
    let taps = lab.list::<PodTap>(namespace).into_iter().map(|tap| format!("tap {}", tap.name_any()));
    let is_of_capture = |pod: &Pod| pod.name_any().starts_with("podtap-capture-");
    let pods = lab.list::<Pod>(namespace).into_iter().filter(is_of_capture);
    let pods = pods.map(|pod| format!("pod {}", pod.name_any()));
    jobs.chain(taps).chain(pods).collect()
}

#[test]
fn frames_of_a_pod_are_in_the_file_with_its_name() {
    let scene = restricted("capture");
    let folder = Folder::new("file");
    let file = folder.0.join("web.pcapng");
    let path = file.to_str().expect("it is text");
    let words = ["web", "-w", path, "--for", "60s"];
    let start = Instant::now();
    let mut child = command(&scene, &folder.0, None, &words).stderr(Stdio::piped()).spawn().expect("it starts");
    let errors = child.stderr.take().expect("it is a pipe");
    let child = Killed(child);
    // The tap is there, and the program in the pod captures.
    let namespace = scene.sandbox.namespace();
    let pings = || tshark(&file, "icmp", &["frame.interface_name"]).len();
    let (name, ping) = (format!("{namespace}/web"), format!("ping -q -c 1 {} >/dev/null", address(&scene.web)));
    until("frames are in the file", PATIENCE, || {
        scene.sandbox.in_pod("client", &ping)?;
        if file.exists() && pings() > 0 { Ok(()) } else { Err("none".to_owned()) }
    });
    eprintln!("the first frames were in the file after {:?}", start.elapsed());
    until("its name is known", PATIENCE, || {
        scene.sandbox.in_pod("client", &ping)?;
        let named = tshark(&file, "icmp", &["frame.interface_name"]).into_iter().any(|fields| fields[0] == name);
        if named { Ok(()) } else { Err("it is not".to_owned()) }
    });
    let at_pod = Capture::start(&scene.sandbox.network(&scene.web), "eth0");
    scene.traffic();
    let expected = at_pod.count(|frame| !frame.is_announcement() && frame.bytes[12..14] == [8, 0]);
    assert!(expected > 100, "{expected}");
    let since = |frames: &[Vec<String>]| frames.iter().filter(|fields| fields[0] == name).count();
    until("each frame of the pod is in the file", PATIENCE, || {
        let tcp = tshark(&file, "tcp", &["frame.interface_name"]);
        let of_pod = at_pod.count(|frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 6);
        if since(&tcp) >= of_pod { Ok(()) } else { Err(format!("{} of {of_pod}", since(&tcp))) }
    });
    signal(&child.0, Signal::SIGINT);
    let mut child = child;
    let status = child.0.wait().expect("it ends");
    let mut text = String::new();
    { errors }.read_to_string(&mut text).expect("it is text");
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("capturing from 1 pod") && text.contains("nothing is left in the cluster"), "{text}");
    assert_eq!(left(&scene), [""; 0], "{text}");
    // Directions as the pod sees them, and no frame of PodTap's own.
    let directions = tshark(&file, "icmp.type == 8", &["frame.packet_flags_direction", "ip.dst"]);
    let is_inbound = |fields: &Vec<String>| fields[0].ends_with('1') && fields[1] == address(&scene.web);
    assert!(directions.iter().any(is_inbound), "{directions:?}");
    assert_eq!(tshark(&file, "eth.type == 0x88b5", &["frame.number"]).len(), 0);
}

/// Copies bytes between a program and the API server, until it is cut: then, it takes none and closes nothing, as a cable that is pulled.
struct Cable {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let (address, is_cut) = (listener.local_addr().expect("it is bound"), Arc::<AtomicBool>::default());
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (server, cut, open) = (server.to_owned(), Arc::clone(&is_cut), Arc::clone(&connections));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&server)) else { return };
                open.lock().expect("no thread panics with it").push(client.try_clone().expect("a copy"));
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().expect("a copy"), to.try_clone().expect("a copy"));
                    let cut = Arc::clone(&cut);
                    thread::spawn(move || carry(from, to, &cut));
                }
            }
        });
        Self { address, is_cut, connections }
    }

    /// Closes all connections. Others can be made.
    fn close(&self) {
        for connection in self.connections.lock().expect("no thread panics with it").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) {
    let mut buffer = [0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // Until the test ends.
        while is_cut.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_secs(1));
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// The kubeconfig of the lab with another address of the server, and the address of the server.
fn kubeconfig(folder: &Folder, address: Option<SocketAddr>) -> (PathBuf, String) {
    let text = fs::read(Cluster::lab().top().join("target/lab/kubeconfig")).expect("the lab has one");
    let mut config: Value = serde_json::from_slice(&text).expect("it is JSON");
    let server = &mut config["clusters"][0]["cluster"]["server"];
    let before = server.as_str().and_then(|url| url.strip_prefix("https://")).expect("a URL").to_owned();
    if let Some(address) = address {
        *server = format!("https://{address}").into();
    }
    let path = folder.0.join("kubeconfig");
    fs::write(&path, config.to_string()).expect("it can be written");
    (path, before)
}

/// A capture that runs.
struct Running {
    folder: Folder,
    child: Killed,
    cable: Option<Cable>,
}

impl Running {
    /// Starts one, with its errors in a file of its folder.
    fn start(scene: &Scene, name: &str, words: &[&str]) -> Self {
        let folder = Folder::new(name);
        let cable = matches!(name, "cable" | "again").then(|| Cable::to(&kubeconfig(&folder, None).1));
        let config = cable.as_ref().map(|cable| kubeconfig(&folder, Some(cable.address)).0);
        let file = folder.0.join("web.pcapng");
        let path = file.to_str().expect("it is text");
        let mut all = if name == "resume" { Vec::new() } else { vec!["web"] };
        match name {
            "window" => folder.program("wireshark", &format!("exec head -c 1500 > {path}")),
            "pipe" => all.extend(["-w", "-"]),
            _ => all.extend(["-w", path]),
        }
        all.extend(words);
        let mut command = command(scene, &folder.0, config.as_deref(), &all);
        command.stderr(fs::File::create(folder.0.join("errors")).expect("it can be created"));
        if name == "pipe" {
            command.stdout(Stdio::piped());
        }
        Self { child: Killed(command.spawn().expect("it starts")), folder, cable }
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.folder.0.join("errors")).unwrap_or_default()
    }

    /// Waits until it has printed something.
    fn wait_for(&self, text: &str) {
        until(&format!("{} prints {text:?}", self.folder.0.display()), PATIENCE, || {
            let errors = self.errors();
            if errors.contains(text) { Ok(()) } else { Err(errors) }
        });
    }

    /// The name of its job and of its tap.
    fn name(&self) -> String {
        self.wait_for(" created");
        let errors = self.errors();
        let word = errors.split_whitespace().find(|word| word.starts_with("podtap-capture-"));
        word.expect("it prints the name").to_owned()
    }

    fn exit(&mut self) -> Option<i32> {
        until(&format!("{} ends", self.folder.0.display()), PATIENCE, || {
            self.child.0.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| "it runs".to_owned())
        })
        .code()
    }
}

/// The program ends in every way there is: by itself, by its user, by the system, without a word; and so do its pod and its tap.
#[test]
fn nothing_is_left_however_a_capture_ends() {
    let scene = restricted("capture-ends");
    let _traffic = Traffic::start(&scene);
    let kubectl = |words: &[&str]| scene.sandbox.kubectl(words, "").expect("an administrator may do that");
    let begun = |name: &'static str| {
        let words: &[&str] = match name {
            "time" => &["--for", "3s"],
            "frames" => &["--packets", "5"],
            "bytes" => &["--max-bytes", "2000"],
            // No frame has it.
            "idle" => &["--port", "9"],
            _ => &[],
        };
        (name, Running::start(&scene, name, words))
    };
    let names = [
        "window", "SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "asleep", "cable", "pod", "tap", "time", "frames", "bytes",
        "pipe", "early", "idle",
    ];
    // Not all at once: the pods start on two cores that do other things as well.
    let mut all: Vec<(&str, Running)> = Vec::new();
    for names in names.chunks(5) {
        let next: Vec<_> = names.iter().copied().map(begun).collect();
        for (name, capture) in &next {
            match *name {
                "early" => {
                    capture.name();
                    signal(&capture.child.0, Signal::SIGKILL);
                }
                "idle" => capture.wait_for("capturing from"),
                _ => capture.wait_for("first packet of"),
            }
        }
        all.extend(next);
    }
    for (name, capture) in &mut all {
        let child = &mut capture.child.0;
        match *name {
            "SIGINT" => signal(child, Signal::SIGINT),
            "SIGTERM" => signal(child, Signal::SIGTERM),
            "SIGHUP" => signal(child, Signal::SIGHUP),
            "SIGKILL" => signal(child, Signal::SIGKILL),
            "asleep" => signal(child, Signal::SIGSTOP),
            "pipe" => drop(child.stdout.take()),
            "cable" => capture.cable.as_ref().expect("it has one").cut(),
            "pod" => {
                let label = format!("batch.kubernetes.io/job-name={}", capture.name());
                kubectl(&["delete", "pod", "-l", &label, "--wait=false"]);
            }
            "tap" => {
                kubectl(&["delete", "podtap", &capture.name(), "--wait=false"]);
            }
            "window" | "time" | "frames" | "bytes" | "early" | "idle" => {}
            other => panic!("{other} does not end"),
        }
    }
    let end = Instant::now();
    // The one without frames runs for longer than any connection may be silent, and is the last one.
    let idle = all.iter_mut().position(|(name, _)| *name == "idle").map(|index| all.remove(index).1);
    let mut idle = idle.expect("there is one");
    until("nothing but that is left", PATIENCE, || {
        let name = idle.name();
        let left: Vec<_> = objects(&scene).into_iter().filter(|left| !left.contains(&name)).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
    assert!(idle.child.0.try_wait().is_ok_and(|status| status.is_none()), "it runs: {}", idle.errors());
    eprintln!("nothing was left {:?} after the last one of {} ended; {LEFT:?} are promised", end.elapsed(), all.len());
    for (name, capture) in &mut all {
        let expected = match *name {
            "SIGKILL" | "early" | "asleep" => continue,
            // Before its time. It tells why.
            "cable" | "pod" => Some(1),
            "tap" => Some(4),
            _ => Some(0),
        };
        assert_eq!(capture.exit(), expected, "{name}: {}", capture.errors());
    }
    signal(&idle.child.0, Signal::SIGINT);
    assert_eq!(idle.exit(), Some(130), "no frame has come: {}", idle.errors());
    assert_eq!(left(&scene), [""; 0]);
}

/// A laptop that changes its network costs nothing: the pod keeps what was not confirmed.
#[test]
fn a_capture_continues_after_its_connection_was_closed() {
    let scene = restricted("capture-again");
    let _traffic = Traffic::start(&scene);
    let mut capture = Running::start(&scene, "again", &[]);
    capture.wait_for("first packet of");
    let file = capture.folder.0.join("web.pcapng");
    let numbers = || -> Vec<u32> {
        let fields = tshark(&file, "icmp.type == 8", &["icmp.seq"]);
        fields.iter().filter_map(|fields| fields[0].parse().ok()).collect()
    };
    for _ in 0..3 {
        let before = numbers().len();
        capture.cable.as_ref().expect("it has one").close();
        until("frames come again", PATIENCE, || {
            let now = numbers().len();
            if now > before + 5 { Ok(()) } else { Err(format!("{now} after {before}: {}", capture.errors())) }
        });
    }
    signal(&capture.child.0, Signal::SIGINT);
    assert_eq!(capture.exit(), Some(0), "{}", capture.errors());
    assert!(capture.errors().contains(", 0 dropped"), "{}", capture.errors());
    let all = numbers();
    // Each ping of five, from the one that the capture began with to the one that it ended with. A busy API server may end a run early.
    let is_next = |pair: &&[u32]| pair[1] == pair[0] + 1 || pair[1] == 0;
    let gap = all.windows(2).find(|pair| !is_next(pair));
    assert_eq!(gap, None, "{all:?}");
    assert_eq!(left(&scene), [""; 0]);
}

/// A laptop that is closed for long: the pod keeps what comes, and another program gets that, and then what comes live.
#[test]
fn a_capture_that_is_kept_is_continued() {
    let scene = restricted("capture-keep");
    let _traffic = Traffic::start(&scene);
    let requests = |capture: &Running| -> Vec<(String, u32)> {
        let rows = tshark(&capture.folder.0.join("web.pcapng"), "icmp.type == 8", &["frame.time_epoch", "icmp.seq"]);
        rows.into_iter().map(|row| (row[0].clone(), row[1].parse().expect("a number"))).collect()
    };
    let first = Running::start(&scene, "keep", &["--keep", "10m", "--max-bytes", "16Mi"]);
    first.wait_for("first packet of");
    until("there are pings", PATIENCE, || if requests(&first).len() > 10 { Ok(()) } else { Err(first.errors()) });
    let (name, killed) = (first.name(), Instant::now());
    signal(&first.child.0, Signal::SIGKILL);
    until("any other capture would be gone", PATIENCE, || {
        if killed.elapsed() > LEFT { Ok(()) } else { Err(format!("{:?}", killed.elapsed())) }
    });
    let left = objects(&scene);
    assert!(left.contains(&format!("job {name}")) && left.contains(&format!("tap {name}")), "{left:?}");

    let mut second = Running::start(&scene, "resume", &["--resume", &name]);
    second.wait_for("first packet of");
    let kept = requests(&second).len();
    until("they come live", PATIENCE, || {
        let now = requests(&second).len();
        if now > kept + 10 { Ok(()) } else { Err(format!("{now} after {kept}: {}", second.errors())) }
    });
    signal(&second.child.0, Signal::SIGINT);
    assert_eq!(second.exit(), Some(0), "{}", second.errors());
    let how = format!("--resume {name}; end: kubectl podtap delete -n {} {name}", scene.sandbox.namespace());
    assert!(second.errors().contains(", 0 dropped") && second.errors().contains(&how), "{}", second.errors());
    // Each ping of five is in one file, or in both.
    let mut all = requests(&first);
    all.extend(requests(&second));
    all.sort();
    all.dedup();
    let gap = all.windows(2).find(|pair| pair[1].1 != pair[0].1 + 1 && pair[1].1 != 0);
    assert_eq!(gap, None, "{all:?}");

    assert!(objects(&scene).contains(&format!("job {name}")), "it stays");
    let kubeconfig = Cluster::lab().top().join("target/lab/kubeconfig");
    let deleted = verb(&scene, "delete", &kubeconfig).arg(&name).output().expect("it runs");
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    until("nothing is left", PATIENCE, || {
        let left = self::left(&scene);
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
}

/// If that takes no longer than the pod waits, the capture continues.
#[test]
fn nothing_is_left_when_the_api_server_was_restarted() {
    let _alone = Cluster::alone();
    let scene = restrict(Scene::alone("capture-restart"));
    let _traffic = Traffic::start(&scene);
    let mut capture = Running::start(&scene, "restart", &[]);
    capture.wait_for("first packet of");
    let file = capture.folder.0.join("web.pcapng");
    let frames = || tshark(&file, "icmp", &["frame.number"]).len();
    let before = frames();
    Stopped::new("cp", "[ \"$(cat $p/comm)\" = kube-apiserver ]").kill();
    until("frames come again, or it has ended", PATIENCE * 2, || {
        let has_ended = capture.child.0.try_wait().is_ok_and(|status| status.is_some());
        if has_ended || frames() > before + 20 { Ok(()) } else { Err(capture.errors()) }
    });
    let has_ended = capture.child.0.try_wait().is_ok_and(|status| status.is_some());
    if !has_ended {
        signal(&capture.child.0, Signal::SIGINT);
    }
    assert_eq!(capture.exit(), Some(i32::from(has_ended)), "{}", capture.errors());
    until("nothing is left", PATIENCE, || {
        let left = left(&scene);
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
}

/// Wireshark's own way to start a program that captures, with tshark in its place.
#[test]
fn wireshark_has_the_pods_among_its_interfaces() {
    let scene = restricted("capture-extcap");
    let _traffic = Traffic::start(&scene);
    let folder = Folder::new("extcap");
    let lab = Cluster::lab().top().join("target/lab");
    std::os::unix::fs::symlink(lab.join("bin/kubectl-podtap"), folder.0.join("podtap")).expect("it can be linked");
    // tshark takes no other folder from the environment if root calls it.
    let script = "mount --bind \"$0\" \"$(tshark -G folders 2>/dev/null | sed -n 's/^Extcap path:[[:space:]]*//p')\" && exec tshark \"$@\"";
    let tshark = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&folder.0).env("KUBECONFIG", lab.join("kubeconfig"));
        let output = command.args(words).stdin(Stdio::null()).output().expect("tshark runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (interfaces, errors) = tshark(&["-D"]);
    assert!(interfaces.contains("podtap (Pods of Kubernetes (PodTap))"), "{interfaces}{errors}");
    let namespace = format!("extcap.podtap.namespace:{}", scene.sandbox.namespace());
    let words =
        ["-i", "podtap", "-o", "extcap.podtap.target:web", "-o", &namespace, "-n", "-c", "10", "-a", "duration:60"];
    let (frames, errors) = tshark(&words);
    assert_eq!(frames.lines().count(), 10, "{frames}{errors}");
    assert!(frames.contains(&address(&scene.web)), "{frames}");
    until("nothing is left", PATIENCE, || {
        let left = left(&scene);
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
}
