//! docs/scale.md
