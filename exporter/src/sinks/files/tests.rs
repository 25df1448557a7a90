use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use jiff::{SignedDuration, ToSpan as _};
use parquet::{
    file::{
        metadata::RowGroupMetaData,
        reader::{FileReader as _, SerializedFileReader},
    },
    record::RowAccessor as _,
};

use super::{columns::RowGroup, *};
use crate::record::{Line, Record, fixtures::record};

/// A directory that is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podtap-files-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn volume(&self, instance: &str, settings: &str) -> Volume {
        let text = format!("{{directory: {}, {settings}}}", self.0.display());
        let config: FilesConfig = serde_saphyr::from_str(&text).expect("it is valid");
        Volume::new(config, instance, Counter::default())
    }

    /// Paths below it, with contents.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for folder in fs::read_dir(&self.0).expect("it exists") {
            for file in fs::read_dir(folder.expect("an entry").path()).expect("a folder") {
                let path = file.expect("an entry").path();
                let name = path.strip_prefix(&self.0).expect("it is below").display().to_string();
                found.insert(name, fs::read(&path).expect("it can be read"));
            }
        }
        found
    }

    fn names(&self) -> Vec<String> {
        self.files().into_keys().collect()
    }

    fn put(&self, name: &str, content: &[u8]) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("it can be written");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const JSON: &str = "format: JSONLines";
const PARQUET: &str = "format: Parquet";

fn at(time: &str) -> Timestamp {
    time.parse().expect("a time")
}

fn start() -> Timestamp {
    at("2026-11-23T18:15:02Z")
}

fn text(records: &[Arc<Record>]) -> String {
    records.iter().flat_map(|record| record.lines()).flat_map(|line| [&*line.text, "\n"]).collect()
}

fn records(ports: std::ops::Range<u16>) -> Vec<Arc<Record>> {
    ports.map(record).collect()
}

/// Ports of clients in a file of Parquet, by row.
fn ports(file: &[u8]) -> Vec<u16> {
    let reader = SerializedFileReader::new(bytes(file)).expect("it is Parquet");
    let column = RowGroup::default().names().position(|name| name == "SrcPort").expect("it is a column");
    let rows = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row"));
    rows.map(|row| row.get_ushort(column).expect("a port")).collect()
}

fn bytes(file: &[u8]) -> podtap_runtime::http::Bytes {
    file.to_vec().into()
}

#[test]
fn a_file_has_its_name_when_it_is_complete() {
    let directory = Directory::new();
    let mut volume = directory.volume("node-1-history", JSON);
    volume.attempt(Step::Deliver, &records(10..12), start()).expect("it is written");
    let name = "date=2026-11-23/flows-20261123T181502Z-node-1-history-000001.jsonl";
    assert_eq!(directory.names(), [format!("{name}.part")]);
    // Not when it is asked for, but by its age.
    volume.attempt(Step::Deliver, &records(12..13), start() + 14.minutes()).expect("it is written");
    volume.attempt(Step::Idle, &[], start() + 15.minutes()).expect("it is completed");
    assert_eq!(directory.files(), [(name.to_owned(), text(&records(10..13)).into_bytes())].into());
    // There is no file without records.
    volume.attempt(Step::Idle, &[], start() + 16.minutes()).expect("there is nothing to do");
    volume.attempt(Step::Finish, &[], start() + 16.minutes()).expect("there is nothing to do");
    assert_eq!(directory.names(), [name]);
}

#[test]
fn a_file_is_of_one_day_and_of_a_size() {
    let directory = Directory::new();
    let mut volume = directory.volume("n", "format: JSONLines, rotate: {mib: 1}");
    let late = at("2026-11-23T23:59:59Z");
    volume.attempt(Step::Deliver, &records(10..11), late).expect("it is written");
    volume.attempt(Step::Deliver, &records(11..12), late + 1.second()).expect("it is written");
    // More than a MiB.
    let many = records(1000..6000);
    volume.attempt(Step::Deliver, &many, late + 2.seconds()).expect("it is written");
    volume.attempt(Step::Deliver, &records(12..13), late + 3.seconds()).expect("it is written");
    volume.attempt(Step::Finish, &[], late + 4.seconds()).expect("it is completed");
    let expected = [
        ("date=2026-11-23/flows-20261123T235959Z-n-000001.jsonl", text(&records(10..11))),
        ("date=2026-11-24/flows-20261124T000000Z-n-000002.jsonl", text(&records(11..12)) + &text(&many)),
        ("date=2026-11-24/flows-20261124T000002Z-n-000003.jsonl", text(&records(12..13))),
    ];
    assert_eq!(directory.files(), expected.map(|(name, text)| (name.to_owned(), text.into_bytes())).into());
}

#[test]
fn row_groups_are_sorted_by_who_calls_whom() {
    let line = |client: &str, server: &str, number: u16| {
        let text =
            format!(r#"{{"Proto":6,"SrcPort":{number},"SrcK8S_OwnerName":"{client}","DstK8S_OwnerName":"{server}"}}"#);
        Line { flow: serde_json::from_str(&text).expect("a flow"), text: text.into() }
    };
    let calls = [("web", "cart"), ("cart", "db"), ("web", "ads")];
    let records: Vec<_> = (0..250)
        .map(|number| {
            let (client, server) = calls[usize::from(number) % 3];
            Arc::new(Record { sent: Some(line(client, server, number)), received: None })
        })
        .collect();
    let directory = Directory::new();
    let mut volume = directory.volume("n", PARQUET);
    volume.attempt(Step::Deliver, &records, start()).expect("it is written");
    volume.attempt(Step::Finish, &[], start()).expect("it is completed");
    let (name, file) = directory.files().pop_first().expect("a file");
    assert_eq!(name, "date=2026-11-23/flows-20261123T181502Z-n-000001.parquet");
    let reader = SerializedFileReader::new(bytes(&file)).expect("it is Parquet");
    let rows: Vec<i64> = reader.metadata().row_groups().iter().map(RowGroupMetaData::num_rows).collect();
    assert_eq!(rows, [100, 100, 50]);
    // In each row group, those of a call are together, the oldest first.
    let ports = ports(&file);
    for group in [0..100, 100..200, 200..250] {
        let rows = &ports[group.clone()];
        let mut calls: Vec<u16> = rows.iter().map(|number| number % 3).collect();
        calls.dedup();
        assert_eq!(calls.len(), 3, "{rows:?}");
        assert!(
            rows.is_sorted_by_key(|number| (calls.iter().position(|call| *call == number % 3), *number)),
            "{rows:?}"
        );
        assert_eq!(rows.iter().map(|number| usize::from(*number)).collect::<BTreeSet<_>>(), group.collect());
    }
}

fn parsed(text: &str) -> Line {
    Line { text: text.into(), flow: serde_json::from_str(text).expect("a flow") }
}

/// What a row of a record has, without what is null or false.
fn row(record: Record) -> BTreeMap<String, String> {
    let directory = Directory::new();
    let mut volume = directory.volume("n", PARQUET);
    volume.attempt(Step::Deliver, &[Arc::new(record)], start()).expect("it is written");
    volume.attempt(Step::Finish, &[], start()).expect("it is completed");
    let (_, file) = directory.files().pop_first().expect("a file");
    let reader = SerializedFileReader::new(bytes(&file)).expect("it is Parquet");
    let row = reader.get_row_iter(None).expect("rows").next().expect("a row").expect("it can be read");
    let all = row.get_column_iter().map(|(name, value)| (name.clone(), value.to_string()));
    all.filter(|(_, value)| value != "null" && value != "false").collect()
}

fn texts<const N: usize>(values: [(&str, &str); N]) -> BTreeMap<String, String> {
    values.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

#[test]
fn missing_fields_are_null() {
    let sent = parsed(
        r#"{"TimeFlowStartMs":1000,"TimeFlowEndMs":2000,"Etype":34525,"Proto":17,"Bytes":18446744073709551615,"Packets":1,
        "SrcAddr":"2001:db8::1","SrcTaps":["PodTap shop/web","ClusterPodTap all"],"Degraded":true,"XlatDstK8S_Name":"cart-1"}"#,
    );
    let expected = texts([
        ("TimeFlowStartMs", "1970-01-01 00:00:01.000 +00:00"),
        ("TimeFlowEndMs", "1970-01-01 00:00:02.000 +00:00"),
        ("Etype", "34525"),
        ("Proto", "17"),
        ("Bytes", "18446744073709551615"),
        ("Packets", "1"),
        ("SrcAddr", "\"2001:db8::1\""),
        ("SrcTaps", "[\"PodTap shop/web\", \"ClusterPodTap all\"]"),
        ("Degraded", "true"),
        ("XlatDstK8S_Name", "\"cart-1\""),
    ]);
    assert_eq!(row(Record { sent: Some(sent), received: None }), expected);
}

#[test]
fn a_row_has_both_directions() {
    let Record { sent, received } = Arc::unwrap_or_clone(record(10));
    let common = [
        ("TimeFlowStartMs", "1970-01-01 00:00:01.000 +00:00"),
        ("TimeFlowEndMs", "1970-01-01 00:00:02.000 +00:00"),
        ("Etype", "2048"),
        ("Proto", "6"),
        ("SrcAddr", "\"10.0.0.1\""),
        ("SrcPort", "10"),
        ("DstAddr", "\"10.0.0.2\""),
        ("DstPort", "80"),
    ];
    let of_reply = [("BytesReply", "54"), ("PacketsReply", "1")];
    let mut expected = texts(common);
    expected.extend(texts(of_reply));
    assert_eq!(row(Record { sent: None, received: received.clone() }), expected);
    expected.extend(texts([("Bytes", "54"), ("Packets", "1")]));
    assert_eq!(row(Record { sent, received }), expected);
}

#[test]
fn each_column_is_a_field_of_lines() {
    let rows = RowGroup::default();
    let names: BTreeSet<&str> = rows.names().collect();
    assert_eq!(names.len(), rows.names().count(), "each has a name of its own");
    for name in names {
        // A field that exists has another type.
        let line = format!(r#"{{"{}":{{}}}}"#, name.trim_end_matches("Reply"));
        let error = serde_json::from_str::<crate::flow::Flow>(&line).expect_err("no field is an object");
        assert!(!error.to_string().contains("no flow has the field"), "{error}");
    }
}

#[test]
fn what_cannot_be_written_waits() {
    let directory = Directory::new();
    // Not even root can make a directory there.
    let path = directory.0.join("volume");
    fs::write(&path, "").expect("it can be written");
    let config = serde_saphyr::from_str(&format!("{{directory: {}, {PARQUET}}}", path.display())).expect("it is valid");
    let lost = Counter::default();
    let mut volume = Volume::new(config, "n", lost.clone());
    let failure = volume.attempt(Step::Deliver, &records(10..12), start()).expect_err("it is no directory");
    assert_eq!((failure.delivered, failure.kind), (0, super::super::FailureKind::Unavailable), "{failure:?}");
    fs::remove_file(&path).expect("it exists");
    volume.attempt(Step::Deliver, &records(10..12), start()).expect("it is taken");
    // The folder is gone, and with it the records that it has, or may get.
    fs::remove_dir_all(&path).expect("it exists");
    volume.attempt(Step::Finish, &[], start()).expect_err("it cannot be renamed");
    assert_eq!(lost.get(), 2);
    // The next file is a new one.
    volume.attempt(Step::Deliver, &records(12..13), start()).expect("it is taken");
    volume.attempt(Step::Finish, &[], start()).expect("it is completed");
    let file = fs::read(path.join("date=2026-11-23/flows-20261123T181502Z-n-000002.parquet")).expect("a file");
    assert_eq!(ports(&file), [12]);
    assert_eq!(lost.get(), 2);
}

#[test]
fn what_an_earlier_run_has_left_is_completed_or_deleted() {
    let directory = Directory::new();
    let (whole, other) = (text(&records(10..11)), text(&records(12..13)));
    let file =
        |time: &str, instance: &str, rest: &str| format!("date=2026-11-23/flows-20261123T{time}Z-{instance}-{rest}");
    directory.put(&file("100000", "n-a", "000001.jsonl.part"), format!("{whole}{{\"Time").as_bytes());
    directory.put(&file("100001", "n-a", "000002.jsonl.part"), b"{\"TimeFlow");
    directory.put(&file("100002", "n-a", "000003.parquet.part"), b"PAR1");
    // These may be written by others at this moment.
    let others = [
        file("100003", "n-b", "000001.jsonl.part"),
        file("100004", "n", "000001.jsonl.part"),
        file("100005", "a", "000001.parquet.part"),
    ];
    for name in &others {
        directory.put(name, other.as_bytes());
    }
    // What has other names is none of ours.
    directory.put("date=2026-11-23/notes.jsonl.part", b"x");
    let mut volume = directory.volume("n-a", JSON);
    volume.attempt(Step::Idle, &[], start()).expect("it is tidied");
    let expected: BTreeSet<String> = others
        .iter()
        .cloned()
        .chain([file("100000", "n-a", "000001.jsonl"), "date=2026-11-23/notes.jsonl.part".to_owned()])
        .collect();
    let files = directory.files();
    assert_eq!(files.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(files[&file("100000", "n-a", "000001.jsonl")], whole.as_bytes());
    // Of an instance that is gone for more than a day.
    let mut volume = directory.volume("n-a", JSON);
    volume.attempt(Step::Idle, &[], start() + SignedDuration::from_hours(24)).expect("it is tidied");
    let left: Vec<String> = directory.names();
    let expected = ["100000Z-n-a", "100003Z-n-b", "100004Z-n"]
        .map(|name| format!("date=2026-11-23/flows-20261123T{name}-000001.jsonl"));
    assert_eq!(left[..3], expected);
    assert_eq!(left[3..], ["date=2026-11-23/notes.jsonl.part"]);
}

#[test]
fn old_files_are_deleted_whoever_has_written_them() {
    let directory = Directory::new();
    let mib = vec![b'\n'; 1 << 20];
    for (day, instance) in [(20, "a"), (21, "b"), (22, "a"), (22, "b"), (23, "a")] {
        directory.put(&format!("date=2026-11-{day}/flows-202611{day}T120000Z-{instance}-000001.jsonl"), &mib);
    }
    directory.put("date=2026-11-20/flows.csv", b"x");
    let tidy = |settings: &str| {
        let mut volume = directory.volume("a", &format!("format: JSONLines, keep: {{{settings}}}"));
        volume.attempt(Step::Idle, &[], start()).expect("it is tidied");
        directory
            .names()
            .iter()
            .filter_map(|name| Some(name.split_once("/flows-202611")?.1[..11].to_owned()))
            .collect::<Vec<_>>()
    };
    assert_eq!(tidy("").len(), 5);
    assert_eq!(tidy("days: 3"), ["21T120000Z-", "22T120000Z-", "22T120000Z-", "23T120000Z-"]);
    // The newest ones that find room.
    assert_eq!(tidy("mib: 3"), ["22T120000Z-", "22T120000Z-", "23T120000Z-"]);
    assert_eq!(tidy("days: 1, mib: 100"), ["23T120000Z-"]);
    // The newest one has more than all may have.
    directory.put("date=2026-11-23/flows-20261123T130000Z-a-000002.jsonl", &mib.repeat(2));
    assert_eq!(tidy("mib: 1"), ["23T130000Z-"]);
    // Empty folders are deleted, and nothing that is not ours.
    assert!(directory.0.join("date=2026-11-20/flows.csv").exists());
    assert!(!directory.0.join("date=2026-11-21").exists());
}

#[test]
fn what_cannot_be_deleted_stays() {
    let directory = Directory::new();
    // Not even root can delete or list these.
    let stuck = "date=2026-11-20/flows-20261120T120001Z-a-000001.jsonl/file";
    let older = "date=2026-11-20/flows-20261120T120000Z-a-000001.jsonl";
    for name in ["date=2026-11-19", stuck, older] {
        directory.put(name, b"x");
    }
    let mut volume = directory.volume("n", "format: JSONLines, keep: {days: 1}");
    for port in 10..12 {
        volume.attempt(Step::Deliver, &records(port..port + 1), start()).expect("it is written");
        volume.attempt(Step::Finish, &[], start()).expect("it is completed");
    }
    let exists = |name: &str| directory.0.join(name).exists();
    assert_eq!([exists(stuck), exists(older)], [true, false]);
    for number in 1..=2 {
        assert!(exists(&format!("date=2026-11-23/flows-20261123T181502Z-n-00000{number}.jsonl")), "{number}");
    }
}

#[test]
fn instances_share_a_directory() {
    let directory = Directory::new();
    let mut volumes = ["n-0-history", "n-1-history"].map(|name| directory.volume(name, JSON));
    for (volume, port) in volumes.iter_mut().zip([10, 20]) {
        volume.attempt(Step::Deliver, &records(port..port + 1), start()).expect("it is written");
    }
    volumes[0].attempt(Step::Finish, &[], start()).expect("it is completed");
    // One that is restarted meanwhile.
    directory.volume("n-0-history", JSON).attempt(Step::Idle, &[], start()).expect("it is tidied");
    volumes[1].attempt(Step::Deliver, &records(21..22), start()).expect("it is written");
    volumes[1].attempt(Step::Finish, &[], start()).expect("it is completed");
    let files = directory.files().into_values().map(|file| String::from_utf8(file).expect("text"));
    assert_eq!(files.collect::<Vec<_>>(), [text(&records(10..11)), text(&records(20..22))]);
}

#[test]
fn settings_have_bounds() {
    let new = |settings: &str| {
        let config =
            serde_saphyr::from_str(&format!("{{directory: /x, {settings}}}")).map_err(|error| error.to_string())?;
        Files::new(config, "s", Counter::default()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(new("format: Parquet, rotate: {mib: 64, minutes: 60}, keep: {days: 365, mib: 128}"), Ok(()));
    for (settings, message) in [
        ("rotate: {}", "format"),
        ("format: CSV", "CSV"),
        ("format: Parquet, rotate: {hours: 1}", "hours"),
        ("format: Parquet, rotate: {minutes: 0}", "rotate.minutes must be from 1 to 1440"),
        ("format: Parquet, rotate: {mib: 0}", "rotate.mib must be from 1 to 1048576"),
        ("format: Parquet, keep: {days: 0}", "keep.days must be from 1 to 36500"),
        ("format: Parquet, keep: {mib: 255}", "keep.mib must be at least twice rotate.mib, so 256"),
        ("format: Parquet, rotate: {mib: 10}, keep: {mib: 19}", "so 20"),
    ] {
        let error = new(settings).expect_err(settings);
        assert!(error.contains(message), "{settings}: {error}");
    }
    let instance = directory::instance("history");
    assert!(instance.ends_with("-history") && Path::new(&instance).components().count() == 1, "{instance}");
}
