//! Names of files, and which of them are kept.
//!
//! `date=2026-11-23/flows-20261123T181502Z-INSTANCE-000001.parquet`: DuckDB and ClickHouse take the folder as the column `date`, and do
//! not open files of other days. A file that is not complete also has the suffix `.part`, which their patterns (`*.parquet`) leave out.
//! Instances are processes: each creates and renames its own files only, and several may delete the same old ones.

use std::{
    cmp::Reverse,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, DateTime},
    tz::TimeZone,
};
use tracing::warn;

use super::{Format, Keep};

const TIME: &str = "%Y%m%dT%H%M%SZ";
const PART: &str = ".part";
/// Longest line of JSON, as in the input.
const LONGEST_LINE: u64 = 64 << 10;
/// How much later than it should have been complete a file of another instance is taken for one that nothing writes any more.
const ABANDONED: SignedDuration = SignedDuration::from_hours(24);

/// Where files are.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    format: Format,
    instance: String,
    /// Files that this run has created.
    created: u32,
    /// How long a file is written.
    unfinished: SignedDuration,
    /// Whether the log tells that old files stay.
    is_told: bool,
}

/// A file by its name.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    since: Timestamp,
    instance: String,
    is_lines: bool,
    is_part: bool,
    path: PathBuf,
}

/// The day of a time, in UTC.
pub fn date(time: Timestamp) -> Date {
    TimeZone::UTC.to_datetime(time).date()
}

/// The name of this process's sink in those of files: the host's, which in a pod is the pod's, and the sink's.
pub fn instance(sink: &str) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let host: String = host.trim().chars().map(|c| if is_valid(c) { c } else { '-' }).collect();
    format!("{host}-{sink}")
}

impl Directory {
    pub fn new(path: &Path, format: Format, instance: &str, unfinished: SignedDuration) -> Self {
        Self { path: path.to_owned(), format, instance: instance.to_owned(), created: 0, unfinished, is_told: false }
    }

    /// A new file, its path, and the one that it gets when it is complete.
    pub fn create(&mut self, now: Timestamp) -> io::Result<(File, PathBuf, PathBuf)> {
        let folder = self.path.join(format!("date={}", date(now)));
        fs::create_dir_all(&folder)?;
        self.created += 1;
        let Self { format, instance, created, .. } = self;
        let name = format!("flows-{}-{instance}-{created:06}.{}", now.strftime(TIME), format.extension());
        let part = folder.join(format!("{name}{PART}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&part)?;
        Ok((file, part, folder.join(name)))
    }

    /// Completes or deletes what a run before this one, or an instance that no longer exists, has left, and deletes old files. No file
    /// of this instance is written meanwhile. What cannot be deleted stays until the next time.
    pub fn tidy(&mut self, keep: Keep, now: Timestamp) -> io::Result<()> {
        let (mut complete, mut failed) = (Vec::new(), Vec::new());
        for file in self.files(&mut failed)? {
            if !file.is_part {
                complete.push(file);
            } else if file.instance == self.instance || now.duration_since(file.since) > self.unfinished + ABANDONED {
                let path = file.path.display();
                match unless_gone(salvage(&file)) {
                    Ok(true) => warn!(file = %path, "an earlier run has not completed this file: it is completed"),
                    Ok(false) => {
                        warn!(file = %path, "an earlier run has not completed this file: it cannot be read, and is deleted");
                    }
                    Err(error) => warn!(file = %path, %error, "an earlier run has not completed this file: it stays"),
                }
            }
        }
        // The newest first.
        complete.sort_by_key(|file| Reverse(file.since));
        let mut room = keep.mib.map_or(u64::MAX, |mib| u64::from(mib) << 20);
        let days = SignedDuration::from_hours(24 * i64::from(keep.days));
        for (index, file) in complete.into_iter().enumerate() {
            let size =
                if keep.mib.is_some() { unless_gone(fs::metadata(&file.path).map(|file| file.len())) } else { Ok(0) };
            let size = size.unwrap_or_else(|error| {
                failed.push((file.path.clone(), error));
                0
            });
            // A file may be larger than it should be.
            let is_kept = (size <= room || index == 0) && now.duration_since(file.since) < days;
            // What is older than one that finds no room does not, either.
            room = if is_kept { room.saturating_sub(size) } else { 0 };
            if is_kept {
                continue;
            }
            if let Err(error) = unless_gone(fs::remove_file(&file.path)) {
                failed.push((file.path, error));
            } else if let Some(folder) = file.path.parent().filter(|_| date(file.since) != date(now)) {
                // If it was the last one of its day.
                let _ = fs::remove_dir(folder);
            }
        }
        if let Some((path, error)) = failed.first().filter(|_| !self.is_told) {
            let others = failed.len() - 1;
            warn!(file = %path.display(), %error, others, "old files cannot be deleted: they stay beyond `keep`");
        }
        self.is_told = !failed.is_empty();
        Ok(())
    }

    /// All files with our names, of all instances. Folders that cannot be read are added to `failed`.
    fn files(&self, failed: &mut Vec<(PathBuf, io::Error)>) -> io::Result<Vec<Named>> {
        let mut files = Vec::new();
        for folder in entries(&self.path)? {
            if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("date=")) {
                match entries(&folder) {
                    Ok(paths) => files.extend(paths.into_iter().filter_map(Named::parse)),
                    Err(error) => failed.push((folder, error)),
                }
            }
        }
        Ok(files)
    }
}

impl Named {
    fn parse(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_prefix("flows-")?;
        let (name, is_part) = name.strip_suffix(PART).map_or((name, false), |name| (name, true));
        let (name, extension) = name.rsplit_once('.')?;
        let is_lines = extension == Format::JsonLines.extension();
        if !is_lines && extension != Format::Parquet.extension() {
            return None;
        }
        let (time, rest) = name.split_once('-')?;
        let since = TimeZone::UTC.to_timestamp(DateTime::strptime(TIME, time).ok()?).ok()?;
        let (instance, number) = rest.rsplit_once('-')?;
        number.parse::<u32>().ok()?;
        Some(Self { since, instance: instance.to_owned(), is_lines, is_part, path })
    }
}

/// Completes a file, or deletes it if it cannot be read: Parquet has the description of its contents at its end. Whether it was completed.
fn salvage(file: &Named) -> io::Result<bool> {
    let length = if file.is_lines { whole_lines(&file.path)? } else { 0 };
    if length == 0 {
        fs::remove_file(&file.path)?;
        return Ok(false);
    }
    // Of a line that was not written to its end.
    if length < fs::metadata(&file.path)?.len() {
        OpenOptions::new().write(true).open(&file.path)?.set_len(length)?;
    }
    fs::rename(&file.path, file.path.with_extension(""))?;
    Ok(true)
}

/// Length of the part that ends with a line.
fn whole_lines(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LONGEST_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| start + at as u64 + 1))
}

/// Paths in a directory; none if there is no such directory.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Another instance may have done the same.
fn unless_gone<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        other => other,
    }
}
