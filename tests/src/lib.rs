//! What the tiers share: captures that compare as multisets, waiting with a deadline, and a client of the lab.

pub mod capture;
pub mod cluster;
pub mod wait;
