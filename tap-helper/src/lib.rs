//! The privileged helper.
