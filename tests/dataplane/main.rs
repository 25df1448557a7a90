//! Dataplane tier: the real `tap-helper` and real packets, on nodes and pods made of namespaces.

mod fidelity;
mod scene;
