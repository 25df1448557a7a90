//! Cluster tier: the product in the lab, on real input.
