//! Container images, built from files without a container runtime.
//!
//! The archive is an OCI layout which also has Docker's `manifest.json`: `ctr`, `k3s ctr` and `kind` read the first,
//! `docker load` the second. The same input gives the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tar::{Archive, Builder, EntryType, Header};

use crate::{digest, state::write_whole};

/// The content of an image.
#[derive(Debug, Default)]
pub struct Image {
    /// Its full name with registry and tag.
    pub name: String,
    /// The program that a container of it runs, with arguments.
    pub entrypoint: Vec<String>,
    /// The user it runs as; none means root.
    pub user: Option<String>,
    /// `NAME=value` lines.
    pub environment: Vec<String>,
    /// Files by their path in the image.
    pub files: BTreeMap<String, Source>,
}

/// Where a file of an image comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A copy of a file of the machine.
    File(PathBuf),
    /// A symbolic link.
    Link(String),
}

/// Reads `DEST=SRC` or `DEST=->TARGET`.
pub fn parse_file(argument: &str) -> Result<(String, Source)> {
    let (destination, source) =
        argument.split_once('=').with_context(|| format!("{argument}: expected DEST=SRC or DEST=->TARGET"))?;
    let destination = destination.trim_start_matches('/');
    ensure!(
        !destination.is_empty() && !destination.split('/').any(|part| part == ".."),
        "{argument}: not a path inside of an image"
    );
    let source =
        source.strip_prefix("->").map_or_else(|| Source::File(source.into()), |target| Source::Link(target.into()));
    Ok((destination.to_owned(), source))
}

/// Writes the archive.
pub fn write(image: &Image, archive: &Path) -> Result<()> {
    let (repository, tag) = split_name(&image.name)?;
    let layer = layer(&image.files)?;
    let layer_digest = digest::hex(&layer);
    let config = serde_json::to_vec(&config(image, &layer_digest))?;
    let config_digest = digest::hex(&config);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({ "io.containerd.image.name": format!("{repository}:{tag}"), "org.opencontainers.image.ref.name": tag });
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry] });
    let docker = json!([{
        "Config": blob(&config_digest),
        "RepoTags": [format!("{repository}:{tag}")],
        "Layers": [blob(&layer_digest)],
    }]);
    let members: BTreeMap<String, Vec<u8>> = [
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
        ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
        (blob(&digest::hex(&manifest)), manifest),
        (blob(&config_digest), config),
        (blob(&layer_digest), layer),
    ]
    .into();
    let mut tar = Builder::new(Vec::new());
    for (path, content) in &members {
        append(&mut tar, EntryType::Regular, path, 0o644, content)?;
    }
    write_whole(archive, tar.into_inner()?)
}

fn config(image: &Image, layer: &str) -> Value {
    // Go's names for the architectures; the rest are the same as Rust's.
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
    let environment: Vec<_> = std::iter::once(&path).chain(&image.environment).collect();
    let mut running = json!({ "Entrypoint": image.entrypoint, "Env": environment });
    if let Some(user) = &image.user {
        running["User"] = json!(user);
    }
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": running,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "lab image" }],
    })
}

fn layer(files: &BTreeMap<String, Source>) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let mut directories: BTreeSet<String> = ["tmp".to_owned()].into();
    for path in files.keys() {
        let above = Path::new(path).ancestors().skip(1).filter(|path| *path != Path::new(""));
        directories.extend(above.map(|path| path.to_string_lossy().into_owned()));
    }
    for directory in &directories {
        let mode = if directory == "tmp" { 0o1777 } else { 0o755 };
        append(&mut tar, EntryType::Directory, &format!("{directory}/"), mode, &[])?;
    }
    for (path, source) in files {
        match source {
            Source::Link(target) => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, target)?;
            }
            Source::File(file) => {
                let content = fs::read(file).with_context(|| format!("cannot read {} for {path}", file.display()))?;
                let executable = fs::metadata(file)?.permissions().mode() & 0o111 != 0;
                append(&mut tar, EntryType::Regular, path, if executable { 0o755 } else { 0o644 }, &content)?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

/// No times and no owners, which would make each build a different image.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(tar: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(kind, mode, content.len());
    tar.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", digest::hex(content)), "size": content.len() })
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn split_name(name: &str) -> Result<(&str, &str)> {
    match name.rsplit_once(':') {
        Some((repository, tag)) if repository.contains('/') && !tag.contains('/') => Ok((repository, tag)),
        _ => {
            bail!("{name}: an image is named REGISTRY/REPOSITORY:TAG here, so that no tool completes it in its own way")
        }
    }
}

/// The name of the image in an archive.
pub fn name_in(archive: &Path) -> Result<String> {
    let file = File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
    let name = indexes(file).ok().and_then(|all| all.iter().find_map(name_in_index));
    let kind = "neither an OCI layout with a name nor an archive of docker save";
    name.with_context(|| format!("{} holds no image: it is {kind}", archive.display()))
}

fn indexes(archive: File) -> Result<Vec<Value>> {
    let mut indexes = Vec::new();
    for entry in Archive::new(archive).entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        if path == Path::new("index.json") || path == Path::new("manifest.json") {
            indexes.push(serde_json::from_reader(entry)?);
        }
    }
    Ok(indexes)
}

fn name_in_index(index: &Value) -> Option<String> {
    let oci = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
    oci.as_str().or(index[0]["RepoTags"][0].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn example() -> Image {
        let link = |path: &str, target: &str| (path.to_owned(), Source::Link(target.to_owned()));
        Image {
            name: "podtap.dev/example:1".into(),
            entrypoint: vec!["/bin/a".into()],
            user: Some("65532:65532".into()),
            environment: vec!["A=b".into()],
            files: [link("usr/bin/z", "/bin/a"), link("bin/a", "b")].into(),
        }
    }

    fn written(name: &str) -> (PathBuf, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("podtap-lab-image-{name}-{}", std::process::id()));
        write(&example(), &path).expect("write");
        let bytes = fs::read(&path).expect("read");
        (path, bytes)
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_and_a_name_to_find() {
        let ((first, a), (second, b)) = (written("a"), written("b"));
        assert_eq!(a, b);
        assert_eq!(name_in(&first).expect("a name"), "podtap.dev/example:1");
        for path in [first, second] {
            fs::remove_file(path).expect("remove");
        }
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_both_manifests_point_at_blobs() {
        let (path, bytes) = written("blobs");
        let mut members = BTreeMap::new();
        for entry in Archive::new(bytes.as_slice()).entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            members.insert(entry.path().expect("path").to_string_lossy().into_owned(), content);
        }
        for (path, content) in &members {
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest, digest::hex(content));
            }
        }
        let docker: Value = serde_json::from_slice(&members["manifest.json"]).expect("JSON");
        let config: Value =
            serde_json::from_slice(&members[docker[0]["Config"].as_str().expect("config")]).expect("JSON");
        assert_eq!(config["config"]["User"], "65532:65532");
        let layer = docker[0]["Layers"][0].as_str().expect("a layer");
        assert_eq!(
            config["rootfs"]["diff_ids"][0].as_str().expect("a digest").strip_prefix("sha256:"),
            layer.strip_prefix("blobs/sha256/")
        );
        fs::remove_file(path).expect("remove");
    }

    #[test]
    fn a_layer_has_a_directory_above_each_file() {
        let layer = layer(&example().files).expect("a layer");
        let mut archive = Archive::new(layer.as_slice());
        let paths: Vec<_> = archive
            .entries()
            .expect("entries")
            .map(|e| e.expect("entry").path().expect("path").to_string_lossy().into_owned())
            .collect();
        assert_eq!(paths, ["bin/", "tmp/", "usr/", "usr/bin/", "bin/a", "usr/bin/z"]);
    }

    #[test]
    fn arguments_are_files_or_links() {
        assert_eq!(parse_file("/bin/a=x/y").expect("a file"), ("bin/a".into(), Source::File("x/y".into())));
        assert_eq!(parse_file("bin/a=->/bin/b").expect("a link"), ("bin/a".into(), Source::Link("/bin/b".into())));
        assert!(parse_file("bin/a").is_err());
        assert!(parse_file("../a=b").is_err());
    }

    #[test]
    fn a_name_is_complete() {
        assert_eq!(split_name("podtap.dev/a:1").expect("a name"), ("podtap.dev/a", "1"));
        assert_eq!(split_name("localhost:5000/a:1").expect("a name"), ("localhost:5000/a", "1"));
        for short in ["busybox", "busybox:1", "podtap.dev/a", "localhost:5000/a"] {
            assert!(split_name(short).is_err(), "{short}");
        }
    }
}
