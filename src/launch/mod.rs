//! How a run is contained and its command gated.

pub mod gate;
