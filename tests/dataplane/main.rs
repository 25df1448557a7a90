//! Dataplane tier: the real `tap-helper` and real packets, on nodes and pods made of namespaces.

mod adoption;
mod bpf_clamp;
mod bpf_filter;
mod bpf_flows;
mod bpf_frames;
mod bpf_load;
mod bpf_scene;
mod bpf_traffic;
mod clamped;
mod commands;
mod counters;
mod destinations;
mod drift;
mod fidelity;
mod foreign;
mod isolation;
mod kernels;
mod leftovers;
mod multiple_taps;
mod pods;
mod programs;
mod receivers;
mod refusals;
mod scene;
mod socket;
mod without_ebpf;
