//! Repository tier: checks of the tree itself, without privileges and in seconds.

mod borders;
mod chart;
mod dependencies;
mod docs;
mod examples;
mod links;
mod lints;
mod messages;

use std::path::{Path, PathBuf};

/// The top of the checkout.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}
