//! The exporter and the systems that people run, which tests/interop/prepare.sh installs.

mod history;
mod scale;
mod sql;
