//! The collector on real packets: captured in network namespaces that the tests make, and read from files. Its page, in a browser, on
//! packets that were made up.

mod access;
mod behind;
mod counts;
mod exported_metrics;
mod exporter;
mod external;
mod files;
mod flood;
mod invented;
mod ipfix;
mod kept;
mod live;
mod network;
mod page;
mod peers;
mod pod;
mod prometheus;
mod read;
mod sensor;
mod shop;
mod slow_sinks;
mod stream;
mod views;
mod written;
