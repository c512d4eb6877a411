//! A shop with two versions of an application, and what its table must hold. The demo and the examples play with it.

pub mod app;
pub mod model;
pub mod shop;
