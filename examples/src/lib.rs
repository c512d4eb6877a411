//! Ways to deploy the new version of an application while pg_zdd splits a column: each with two real versions that keep
//! reading and writing, and none of whose users may see an error or a value that is not the one written last.

mod blue_green;
mod canary;
mod rollback;
mod rolling;
mod stage;

use pg_zdd_cluster::Result;

pub use stage::Pace;

type Example = fn(Pace) -> Result<()>;

pub const EXAMPLES: [(&str, Example); 4] = [
    ("rolling", rolling::play),
    ("blue-green", blue_green::play),
    ("canary", canary::play),
    ("rollback", rollback::play),
];
