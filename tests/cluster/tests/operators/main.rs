//! Several people, scripts and workers act on one change, in every order that has gone wrong: no value is lost, nothing is left
//! behind, nobody waits without being told for whom.

mod contracts;
mod jobs;
mod locks;
mod stage;
mod transactions;
