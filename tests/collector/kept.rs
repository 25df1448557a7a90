//! `podtap-collector stream --keep`: what no client has confirmed is kept in files.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use podtap_tests::{
    frames::udp,
    pcap,
    wait::{PATIENCE, until},
};

use crate::{
    pod::{CART, OUTSIDE, Pod, RECEIVER, WEB},
    stream::{Capture, Stream, datagrams, payloads},
    views::identity,
    written::statistics,
};

/// A directory that the program may write to, and that is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podtap-stream-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("it can be created");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("it is ours");
        Self(path)
    }

    /// Waits until the newest file has the datagram with this number.
    #[track_caller]
    fn until_kept(&self, number: usize) {
        until("it is kept", PATIENCE, || {
            let newest = fs::read_dir(&self.0).expect("it exists").flatten().map(|file| file.path()).max();
            let bytes = newest.and_then(|path| fs::read(path).ok()).unwrap_or_default();
            if bytes.windows(8).any(|window| window == number.to_be_bytes()) { Ok(()) } else { Err("not yet") }
        });
    }

    fn size(&self) -> u64 {
        let files = fs::read_dir(&self.0).expect("it exists");
        files.map(|file| file.and_then(|file| file.metadata()).map_or(0, |file| file.len())).sum()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_kept_without_a_client_can_be_read_alone() {
    const ROOM: u64 = 4 << 20;
    let pod = Pod::new();
    let directory = Directory::new("kept");
    let path = directory.0.to_str().expect("it is text");
    let room = ROOM.to_string();
    let stream =
        Stream::start(&pod, &["--keep", path, "--keep-bytes", &room, "--abandoned-after", "1", "--first-client", "60"]);
    let _connection = pod.hand_over(RECEIVER);
    let mut injector = pod.injector(RECEIVER);
    injector.frames(&[identity("web", WEB), identity("cart", CART), udp((CART, 3), (OUTSIDE, 4), &[1; 8])]);
    // A client that reads some frames, and vanishes.
    let (frames, expected) = datagrams(20_000, 1000);
    let (before, after) = frames.split_at(100);
    let mut first = stream.client(0);
    assert_eq!(first.from, 0);
    injector.frames(before);
    first.read_until(&99_usize.to_be_bytes());
    first.read_what_waits();
    drop(first);
    // What comes then is five times what is kept.
    for (part, frames) in after.chunks(1990).enumerate() {
        injector.frames(frames);
        directory.until_kept(100 + part * 1990 + frames.len() - 1);
        assert!(directory.size() <= ROOM, "{} bytes", directory.size());
    }
    // Another one gets what is there, and what comes.
    let mut second = stream.client(0);
    assert!(second.from > 10 << 20, "it begins at {}", second.from);
    injector.frame(&udp((CART, 5), (OUTSIDE, 6), b"comes now"));
    second.read_until(b"comes now");
    let begins = second.from;
    // Its connection breaks, and it is where it was.
    let again = stream.client(second.received());
    assert_eq!(again.from, second.received());
    let bytes = std::mem::take(&mut second.bytes);
    drop(second);
    injector.frame(&udp((CART, 5), (OUTSIDE, 6), b"the last one"));
    let mut again = again;
    again.read_until(b"the last one");
    stream.end();
    again.read_to_end();
    let errors = stream.wait();
    let capture = Capture::new(&[bytes, again.bytes].concat());
    let kept = payloads(&capture);
    let of_datagrams = &kept[..kept.len() - 2];
    assert_eq!(of_datagrams, &expected[expected.len() - of_datagrams.len()..], "the newest ones: {begins}, {errors}");
    assert!((3000..4000).contains(&of_datagrams.len()), "{}", of_datagrams.len());
    // The interfaces have their places of the whole stream, and what the first client has is not lost.
    let fields = ["frame.interface_name", "udp.dstport"];
    assert_eq!(pcap::fields(&capture.0, fields).last(), Some(&["shop/cart", "6"].map(str::to_owned)));
    let lost = (20_000 - 100 - of_datagrams.len()) as u64;
    assert!(statistics(&capture.0).ends_with(&[(3, 0), (20_000, lost)]), "{lost}: {errors}");
    assert!(errors.contains(&format!("{lost} dropped")), "{errors}");
    assert_eq!(directory.size(), 0, "nothing is left");
}

#[test]
fn a_slow_client_loses_no_frame_that_is_kept() {
    let pod = Pod::new();
    let directory = Directory::new("slow");
    let path = directory.0.to_str().expect("it is text");
    let stream = Stream::start(&pod, &["--keep", path, "--keep-bytes", "100000000", "--abandoned-after", "60"]);
    let _connection = pod.hand_over(RECEIVER);
    // It does not read while more comes than the window in memory has room for.
    let mut client = stream.client(0);
    let (frames, expected) = datagrams(40_000, 1400);
    let mut injector = pod.injector(RECEIVER);
    for (part, frames) in frames.chunks(2000).enumerate() {
        injector.frames(frames);
        directory.until_kept(part * 2000 + frames.len() - 1);
    }
    client.read_until(&39_999_usize.to_be_bytes());
    let (capture, errors) = stream.finish(client);
    assert_eq!(payloads(&capture), expected, "{errors}");
    assert_eq!(statistics(&capture.0).last(), Some(&(40_000, 0)), "{errors}");
}
