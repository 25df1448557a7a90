//! Dataplane tier: the real `tap-helper` and real packets, on nodes and pods made of namespaces.

mod adoption;
mod bpf_filter;
mod bpf_fit;
mod bpf_flows;
mod bpf_frames;
mod bpf_load;
mod bpf_scene;
mod bpf_traffic;
mod by_hand;
mod counters;
mod destinations;
mod drift;
mod fidelity;
mod fitted;
mod foreign;
mod isolation;
mod kernels;
mod pods;
mod programs;
mod protocol;
mod receivers;
mod refusals;
mod scene;
mod several;
mod sweep;
mod without_ebpf;
