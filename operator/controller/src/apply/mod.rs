//! Creates, updates and deletes the cluster's objects according to the plan. Every error is collected; none stops what does not
//! depend on it.

pub mod actions;
pub mod agent_account;
pub mod cleanup;
pub mod context;
pub mod execute;
pub mod finalizers;
pub mod helper_failures;
pub mod helper_pod;
pub mod helper_probes;
pub mod helper_requests;
pub mod helper_volumes;
pub mod objects;
pub mod sweep_record;
pub mod uninstall_guard;
