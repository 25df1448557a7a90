//! The PodTap operator.
fn main() {}
