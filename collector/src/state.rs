//! The map on disk, so that it survives a restart: a header, and a JSON object per line and edge.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use podtap_flow::map::{Edge, Map, Traffic};
use serde::{Deserialize, Serialize};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, warn};

use crate::shared::Shared;

/// How often it is saved: so much of what was seen is lost in a crash.
const INTERVAL: Duration = Duration::from_secs(60);
const HEADER: &str = "podtap-map 1";

#[derive(Serialize, Deserialize)]
struct Line {
    edge: Edge,
    traffic: Traffic,
}

/// Adds the edges of a file. Without a file, there are none; what cannot be read is left out.
pub fn restore(path: &Path, map: &mut Map) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut lines = BufReader::new(file).split(b'\n');
    if lines.next().transpose()?.as_deref() != Some(HEADER.as_bytes()) {
        warn!(path = %path.display(), "this is no map of this version; beginning without one");
        return Ok(());
    }
    for line in lines {
        match serde_json::from_slice(&line?) {
            Ok(Line { edge, traffic }) => map.restore(edge, traffic),
            Err(error) => warn!(path = %path.display(), %error, "an edge of the saved map is left out"),
        }
    }
    Ok(())
}

/// Saves the map. A reader sees the earlier file or this one, and never a part.
pub fn save(path: &Path, map: &Map) -> io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let mut out = BufWriter::new(File::create(&next)?);
    writeln!(out, "{HEADER}")?;
    for (edge, traffic) in map.edges() {
        serde_json::to_writer(&mut out, &Line { edge: edge.clone(), traffic: traffic.clone() })?;
        writeln!(out)?;
    }
    out.into_inner()?.sync_all()?;
    fs::rename(next, path)
}

/// Saves the map again and again. The analysis is held up for no longer than it takes to copy the map.
pub async fn keep_saving(path: PathBuf, shared: Shared) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is due at once.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (view, to) = (shared.view(), path.clone());
        let saved =
            spawn_blocking(move || save(&to, &view.map)).await.unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        if let Err(error) = saved {
            error!(path = %path.display(), %error, "the map cannot be saved; retrying");
        }
    }
}

#[cfg(test)]
mod tests {
    use podtap_flow::{Failure, map::Party, names::Workload};

    use super::*;

    #[test]
    fn a_map_is_restored() {
        let workload = Workload { kind: "Deployment".into(), name: "web".into(), api_version: "apps/v1".into() };
        let client = Party::Workload { namespace: "shop".into(), workload };
        let edge = |name: Option<&str>| Edge {
            client: client.clone(),
            server: Party::External { name: name.map(str::to_owned) },
        };
        let traffic = Traffic {
            connections: 3,
            failed: [(Failure::NoAnswer, 1)].into(),
            ports: [((6, 443), 3)].into(),
            services: [(("shop".to_owned(), "web".to_owned()), 2)].into(),
            ..Traffic::default()
        };
        let mut map = Map::default();
        map.restore(edge(Some("example.com")), traffic.clone());
        map.restore(edge(None), Traffic::default());
        let directory = std::env::temp_dir().join(format!("podtap-map-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("map");

        let mut restored = Map::default();
        restore(&path, &mut restored).expect("without a file there is nothing");
        assert!(restored.is_empty());
        save(&path, &map).expect("it can be saved");
        restore(&path, &mut restored).expect("it can be read");
        assert_eq!(restored.edges().collect::<Vec<_>>(), map.edges().collect::<Vec<_>>());

        // Half a line, as a full disk leaves it, and a file of something else.
        let text = fs::read_to_string(&path).expect("text");
        fs::write(&path, &text[..text.len() - 5]).expect("it can be written");
        let mut part = Map::default();
        restore(&path, &mut part).expect("the rest can be read");
        assert_eq!(part.len(), 1);
        fs::write(&path, "something else\n").expect("it can be written");
        let mut none = Map::default();
        restore(&path, &mut none).expect("it is left out");
        assert!(none.is_empty());
        fs::remove_dir_all(directory).expect("it exists");
    }
}
