//! End-to-end tier: the product in the lab, installed as a user installs it.

#![allow(clippy::similar_names, reason = "receiver and received are the terms of the field")]

mod access;
mod beginnings;
mod calls;
mod capture;
mod changes;
mod churn;
mod cli;
mod cli_plan;
mod cluster_taps;
mod controller;
mod delete;
mod delivery;
mod destinations;
mod drain;
mod etcd;
mod examples;
mod faults;
mod fidelity;
mod flows;
mod follow;
mod forged;
mod helper_pods;
mod install;
mod map;
mod metrics;
mod mistakes;
mod names;
mod node_faults;
mod numbered;
mod opt_out;
mod option_changes;
mod options;
mod orphans;
mod outage;
mod packet;
mod processes;
mod residue;
mod reuse;
mod rollout;
mod scene;
mod soak;
mod tenancy;
mod top;
mod uninstall;
