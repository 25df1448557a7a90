//! PodTap with programs of others, which `make interop` installs below target/interop.

mod broker;
mod goflow2;
mod history;
mod kafka;
mod libpcap;
mod otel;
mod scale;
mod sql;
