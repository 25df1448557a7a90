//! End-to-end tier: the product in the lab, installed as a user installs it, on real input.

#![allow(clippy::similar_names, reason = "receiver and received are what the field says")]

mod delete;
mod destinations;
mod examples;
mod fidelity;
mod follow;
mod helper_pods;
mod install;
mod metrics;
mod mistakes;
mod outage;
mod packet;
mod residue;
mod scene;
mod tenancy;
mod treatment;
mod treatment_changes;
mod treatment_flows;
