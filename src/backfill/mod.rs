//! Splitting the rows that were last written before the dual writes began.

pub mod batch;
pub mod index;
pub mod plan;
pub mod run;
pub mod signals;
pub mod throttle;
