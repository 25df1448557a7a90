//! PodTap with programs of others, which `make interop` installs below target/interop.

mod history;
mod libpcap;
mod otel;
mod scale;
mod sql;
