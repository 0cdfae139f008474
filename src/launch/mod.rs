//! How a run is contained and its command gated.
