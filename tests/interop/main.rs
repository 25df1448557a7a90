//! PodTap with programs of others, which `make interop` installs below target/interop.

mod goflow2;
mod history;
mod libpcap;
mod otel;
mod scale;
mod sql;
