//! The collector on real packets: captured in network namespaces that the tests make, and read from files.

mod counts;
mod invented;
mod live;
mod network;
mod page;
mod peers;
mod read;
mod views;
