//! The collector on real packets: captured in network namespaces that the tests make, and read from files.

mod counts;
mod flood;
mod frames;
mod live;
mod network;
mod peers;
mod prometheus;
mod read;
mod shop;
mod views;
mod written;
