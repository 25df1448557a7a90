//! PodTap with programs of others, which `make interop` builds below target/interop.

mod libpcap;
mod otel;
