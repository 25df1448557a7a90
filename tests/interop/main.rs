//! PodTap with programs of others, which `make interop` installs below target/interop.

mod broker;
mod history;
mod kafka;
mod libpcap;
mod otel;
mod scale;
mod sql;
