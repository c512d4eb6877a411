//! What new applications say.
use super::script::Stage;
use pg_zdd_cluster::fastrand::Rng;
pub fn stage(rng: &mut Rng) -> Stage {
    super::old_app::stage(rng)
}
