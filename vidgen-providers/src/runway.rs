//! Runway.
