use std::fs;

use serde_json::json;

use super::*;

/// A directory that is removed when this is dropped.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podtap-pcapng-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// Names of the files, in order.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("it exists");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names() -> Names {
    let pod = |name: &str, address: &str| {
        json!({"namespace": "shop", "name": name, "uid": name, "addresses": [address], "node": "n1",
            "workload": {"kind": "Deployment", "name": name}})
    };
    let objects = json!({"pods": [pod("web", "10.0.0.1"), pod("cart", "10.0.0.2")],
        "services": [{"namespace": "shop", "name": "cart", "addresses": ["10.96.0.5"]}],
        "nodes": [{"name": "n1", "addresses": ["192.168.0.1"]}]});
    Names::new(serde_json::from_value(objects).expect("objects"))
}

/// An Ethernet frame with an IPv4 packet of an unassigned protocol.
fn frame(from: [u8; 4], to: [u8; 4], ttl: u8) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, ttl, 253, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    frame.extend([7; 8]);
    frame
}

fn write(writer: &mut Writer, seconds: u64, bytes: &[u8]) {
    let at = Timestamp::from_seconds(seconds);
    let frame = Frame { source: 0, at, length: u32::try_from(bytes.len()).expect("short"), bytes };
    writer.frame(&frame, packet::parse(bytes, frame.length).as_ref(), &names());
}

const WEB: [u8; 4] = [10, 0, 0, 1];
const CART: [u8; 4] = [10, 0, 0, 2];
const ELSEWHERE: [u8; 4] = [192, 0, 2, 1];
const ONE_FILE: Rotation = Rotation { size: None, every: None, files: 10 };

#[test]
fn a_frame_is_of_the_pod_that_saw_it() {
    let directory = Directory::new("pods");
    let mut writer = Writer::here(&directory.0.join("a.pcapng"), ONE_FILE).expect("it can be written");
    let mut identify = |from, to, ttl| {
        let bytes = frame(from, to, ttl);
        let packet = packet::parse(&bytes, 42).expect("a packet");
        let frame = Frame { source: 3, at: Timestamp(1), length: 42, bytes: &bytes };
        let (interface, direction, names) = writer.identify(&frame, Some(&packet), &names());
        (interface.name.clone(), direction, names.map(|name| name.map(|(_, name)| name.to_string())))
    };
    let of_web = || Some("web.shop.pod".to_owned());
    let of_cart = || Some("cart.shop.pod".to_owned());
    let (inbound, outbound) = (Some(Direction::Inbound), Some(Direction::Outbound));
    assert_eq!(identify(WEB, ELSEWHERE, 60), ("shop/web".to_owned(), outbound, [of_web(), None]));
    assert_eq!(identify(ELSEWHERE, WEB, 60), ("shop/web".to_owned(), inbound, [None, of_web()]));
    assert_eq!(identify(WEB, CART, 64), ("shop/web".to_owned(), outbound, [of_web(), of_cart()]));
    assert_eq!(identify(WEB, CART, 63), ("shop/cart".to_owned(), inbound, [of_web(), of_cart()]));
    let [service, node] = [[10, 96, 0, 5], [192, 168, 0, 1]];
    assert_eq!(
        identify(service, node, 64),
        ("interface 3 of the files".to_owned(), None, [Some("cart.shop.svc".to_owned()), Some("n1".to_owned())])
    );
}

#[test]
fn hostile_addresses_make_no_interfaces() {
    let directory = Directory::new("hostile");
    let path = directory.0.join("a.pcapng");
    let mut writer = Writer::here(&path, ONE_FILE).expect("it can be written");
    for number in 0..40_000_u32 {
        write(&mut writer, 1, &frame(number.to_be_bytes(), (!number).to_be_bytes(), 64));
    }
    assert!(writer.others.len() <= REMEMBERED && writer.of_pods.len() <= 2, "{}", writer.others.len());
    writer.finish().expect("it is written");
    // That for what is no pod's.
    let bytes = fs::read(path).expect("it was written");
    let (mut at, mut interfaces) = (0, 0);
    while at < bytes.len() {
        let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a whole block"));
        interfaces += u32::from(word(at) == 1);
        at += word(at + 4) as usize;
    }
    assert_eq!(interfaces, 1);
}

#[test]
fn files_are_rotated_by_time_and_the_oldest_are_removed() {
    let directory = Directory::new("time");
    let path = directory.0.join("frames.pcapng");
    let rotation = Rotation { size: None, every: Some(Duration::from_secs(10)), files: 3 };
    fs::write(directory.0.join("frames-1.pcapng"), "of another program").expect("it can be written");
    let mut writer = Writer::here(&path, rotation).expect("it can be written");
    assert_eq!(directory.files(), ["frames-000001.pcapng.part", "frames-1.pcapng"]);
    for second in 100..145 {
        write(&mut writer, second, &frame(WEB, CART, 64));
    }
    // 100, 110, 120, 130 and 140.
    assert_eq!(
        directory.files(),
        ["frames-000003.pcapng", "frames-000004.pcapng", "frames-000005.pcapng.part", "frames-1.pcapng"]
    );
    // As after a crash.
    drop(writer);
    let mut writer = Writer::here(&path, rotation).expect("it can be written");
    assert_eq!(
        directory.files(),
        ["frames-000004.pcapng", "frames-000005.pcapng", "frames-000006.pcapng.part", "frames-1.pcapng"]
    );
    writer.finish().expect("it is written");
    assert_eq!(directory.files(), ["frames-000004.pcapng", "frames-000005.pcapng", "frames-1.pcapng"], "none is empty");
}

#[test]
fn no_file_is_longer_than_allowed() {
    let directory = Directory::new("size");
    let rotation = Rotation { size: Some(2000), every: None, files: 1000 };
    let mut writer = Writer::here(&directory.0.join("frames"), rotation).expect("it can be written");
    for _ in 0..200 {
        write(&mut writer, 1, &frame(WEB, CART, 64));
    }
    writer.finish().expect("it is written");
    let files = directory.files();
    let sizes: Vec<u64> =
        files.iter().map(|name| fs::metadata(directory.0.join(name)).expect("it exists").len()).collect();
    assert!(files.len() > 5 && sizes.iter().all(|size| *size <= 2000), "{sizes:?}");
    assert!(sizes[..sizes.len() - 1].iter().all(|size| *size > 1600), "and none is cut short: {sizes:?}");
    // A frame that is longer than a file has one of its own.
    let mut writer = Writer::here(&directory.0.join("long"), rotation).expect("it can be written");
    for _ in 0..3 {
        write(&mut writer, 1, &[&frame(WEB, CART, 64)[..], &[0; 3000]].concat());
    }
    writer.finish().expect("it is written");
    assert_eq!(directory.files().iter().filter(|name| name.starts_with("long-")).count(), 3);
}

#[test]
fn what_comes_during_a_pause_is_counted() {
    let directory = Directory::new("pause");
    let path = directory.0.join("a.pcapng");
    let mut writer = Writer::beside(&path, ONE_FILE, vec!["eth0".to_owned()]).expect("it can be written");
    for (second, is_paused) in [(1, false), (2, true), (3, true), (4, true), (5, false)] {
        writer.pause(is_paused);
        write(&mut writer, second, &frame(WEB, CART, 64));
    }
    writer.finish().expect("it is written");
    assert_eq!(writer.counts(), (2, 3));
}

#[test]
fn a_full_queue_costs_frames_and_not_time() {
    let directory = Directory::new("queue");
    let counts = Arc::<Counts>::default();
    let (sender, receiver) = channel();
    let queued = Arc::<AtomicUsize>::default();
    // The thread does not read.
    let sink = Sink::Thread { sender: Some(sender), queued: Arc::clone(&queued), thread: None };
    let mut writer = Writer::new(sink, Arc::clone(&counts), vec!["eth0".to_owned()]);
    let bytes = [&frame(WEB, CART, 64)[..], &vec![0; 60_000]].concat();
    for _ in 0..400 {
        write(&mut writer, 1, &bytes);
    }
    let kept = QUEUE / (bytes.len() + OVERHEAD);
    assert_eq!(writer.counts(), (0, 400 - kept as u64));
    // Now it does.
    drop(writer);
    let files = Files::new(&directory.0.join("a.pcapng"), ONE_FILE, Arc::clone(&counts)).expect("it can be written");
    drain(&receiver, files, &queued, &counts);
    assert_eq!(counts.written.load(Ordering::Relaxed), kept as u64);
    assert_eq!(queued.load(Ordering::Relaxed), 0);
}

#[test]
fn a_volume_without_room_costs_frames_and_is_tried_again() {
    let directory = Directory::new("full");
    let counts = Arc::<Counts>::default();
    let path = directory.0.join("sub").join("frames");
    fs::create_dir(path.parent().expect("a parent")).expect("a directory");
    let rotation = Rotation { size: None, every: Some(Duration::from_secs(1)), files: 3 };
    let files = Files::new(&path, rotation, Arc::clone(&counts)).expect("it can be written");
    let (sender, receiver) = channel();
    let queued = Arc::<AtomicUsize>::default();
    let sink = Sink::Thread { sender: Some(sender), queued: Arc::clone(&queued), thread: None };
    let mut writer = Writer::new(sink, Arc::clone(&counts), Vec::new());
    // The directory is gone: the second file cannot be begun.
    fs::remove_dir_all(path.parent().expect("a parent")).expect("it exists");
    for second in [1, 3, 5] {
        writer.tick(Timestamp::from_seconds(second), 0);
        write(&mut writer, second, &frame(WEB, CART, 64));
    }
    drop(writer);
    drain(&receiver, files, &queued, &counts);
    assert_eq!(
        (counts.written.load(Ordering::Relaxed), counts.dropped.load(Ordering::Relaxed)),
        (1, 2),
        "the first one is in a file without a name"
    );
}

/// A full disk shows when what was buffered is written, and not with a frame.
#[test]
fn a_file_that_cannot_be_flushed_is_given_up() {
    let mut files = Files::new(Path::new("/dev/full"), ONE_FILE, Arc::default()).expect("it is only buffered");
    files.tick(Timestamp(1)).expect_err("there is no room");
    assert!(!files.can_write(), "and no other file to begin");
    files.tick(Timestamp(2)).expect("what was given up fails no more");
    files.complete().expect("nor is it complete");
}
