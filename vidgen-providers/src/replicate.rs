//! Replicate.
