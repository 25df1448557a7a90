//! SQL of the documents, run by DuckDB and ClickHouse.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Who runs it.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    DuckDb,
    ClickHouse,
}

impl Engine {
    pub const ALL: [Self; 2] = [Self::DuckDb, Self::ClickHouse];

    /// As the first line of each block in the documents names it.
    const fn name(self) -> &'static str {
        match self {
            Self::DuckDb => "DuckDB",
            Self::ClickHouse => "ClickHouse",
        }
    }

    /// The rows of the last statement. Times are milliseconds since 1970.
    pub fn run(self, statements: &[String]) -> Vec<Value> {
        self.call(statements, None)
    }

    /// How long the last statement takes, in seconds, so many times.
    pub fn time(self, statements: &[String], times: usize) -> Vec<f64> {
        self.call(statements, Some(times))
    }

    fn call<T: DeserializeOwned>(self, statements: &[String], times: Option<usize>) -> Vec<T> {
        let python = top().join("target/interop/history/bin/python");
        assert!(python.exists(), "tests/interop/prepare.sh history installs {}", python.display());
        let mut command = Command::new(python);
        command.arg(top().join("tests/interop/history/sql.py")).arg(self.name().to_lowercase());
        command.args(times.map(|times| times.to_string()));
        // Times without a zone are UTC.
        command.env("TZ", "UTC").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let text = serde_json::to_string(statements).expect("text");
        child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{statements:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

/// The top of this checkout.
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package is in the workspace")
}

/// Blocks of SQL in a document.
pub struct Document(Vec<Block>);

struct Block {
    section: String,
    engine: String,
    statements: Vec<String>,
}

impl Document {
    /// `replace`: texts that are other ones in a test.
    pub fn read(path: &str, replace: &[(&str, &str)]) -> Self {
        let mut text = fs::read_to_string(top().join(path)).expect("a document");
        for (old, new) in replace {
            assert!(text.contains(old), "{path} has no {old:?}");
            text = text.replace(old, new);
        }
        let mut blocks = Vec::new();
        for section in text.split("\n## ") {
            let title = section.lines().next().unwrap_or_default().trim_start_matches("# ");
            for block in section.split("```sql\n").skip(1) {
                let (block, _) = block.split_once("```").expect("a block has an end");
                let (engine, sql) = block.split_once('\n').expect("the first line names the engine");
                let engine = engine.strip_prefix("-- ").expect("it is a comment").to_owned();
                let statements = sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty());
                blocks.push(Block {
                    section: title.to_owned(),
                    engine,
                    statements: statements.map(str::to_owned).collect(),
                });
            }
        }
        Self(blocks)
    }

    /// The statements of a section's block, counted from 0, for this engine.
    #[track_caller]
    pub fn block(&self, section: &str, engine: Engine, number: usize) -> &[String] {
        let mut blocks = self.0.iter().filter(|block| block.section == section && block.engine == engine.name());
        let block = blocks.nth(number).unwrap_or_else(|| panic!("no block {number} of {engine:?} in {section:?}"));
        &block.statements
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// A directory below the temporary one, removed when this is dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podtap-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
