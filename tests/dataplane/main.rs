//! Dataplane tier: the real `tap-helper` and real packets, on nodes and pods made of namespaces.

mod adoption;
mod by_hand;
mod contract;
mod destinations;
mod drift;
mod fidelity;
mod foreign;
mod isolation;
mod pods;
mod receivers;
mod refusals;
mod scene;
mod several;
mod sweep;
