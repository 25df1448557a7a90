//! Offline tier.
