//! The phases of a change and the legal moves between them. Pure: needs no server.

use std::fmt;
use std::str::FromStr;

/// Where a change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Both shapes exist, live writes are kept in sync, existing rows are being split.
    Expanding,
    /// Every row carries both shapes.
    Expanded,
    /// The old column is out of the applications' reach but still kept in sync.
    Fenced,
    /// The old column is gone. Final.
    Contracted,
    /// The new columns are gone. Final.
    RolledBack,
}

impl Phase {
    const ALL: [Phase; 5] = [Self::Expanding, Self::Expanded, Self::Fenced, Self::Contracted, Self::RolledBack];

    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expanding => "expanding",
            Self::Expanded => "expanded",
            Self::Fenced => "fenced",
            Self::Contracted => "contracted",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether the change is over.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Contracted | Self::RolledBack)
    }

    /// Whether a change in this phase is where it wanted to be, or has gone on from there.
    pub fn has_reached(self, wanted: Phase) -> bool {
        let place = |phase| match phase {
            Self::Expanding => Some(0),
            Self::Expanded => Some(1),
            Self::Fenced => Some(2),
            Self::Contracted => Some(3),
            Self::RolledBack => None,
        };
        self == wanted || place(self).zip(place(wanted)).is_some_and(|(here, there)| here >= there)
    }

    /// Whether both sides exist.
    pub fn is_active(self) -> bool {
        !self.is_final()
    }
}

impl FromStr for Phase {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word).ok_or(())
    }
}

/// A move that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IllegalMove {
    /// The phase that the change is in.
    pub from: Phase,
    /// The phase that it was to go to.
    pub to: Phase,
}

/// Says whether a change may go from one phase to another. What a legal move demands of the rows is not known here.
pub fn move_to(from: Phase, to: Phase) -> Result<(), IllegalMove> {
    use Phase::{Contracted, Expanded, Expanding, Fenced, RolledBack};
    match (from, to) {
        (Expanding, Expanded)
        | (Expanded, Fenced)
        | (Fenced, Expanded | Contracted)
        | (Expanding | Expanded | Fenced, RolledBack) => Ok(()),
        _ => Err(IllegalMove { from, to }),
    }
}

impl fmt::Display for IllegalMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match (self.from, self.to) {
            (from, to) if from == to => {
                return write!(f, "the change is already {}", from.as_str());
            }
            (Phase::Contracted, _) => "the old column is gone, which is final",
            (Phase::RolledBack, _) => "the new columns are gone, which is final",
            (_, Phase::Expanding) => "only a new change is expanding",
            (Phase::Expanding, _) => "not all rows are known to carry both shapes yet",
            _ => "it has not been fenced",
        };
        write!(f, "the change is {} and cannot become {}: {reason}", self.from.as_str(), self.to.as_str())
    }
}

impl std::error::Error for IllegalMove {}

impl IllegalMove {
    /// The next step that does exist.
    pub fn hint(&self) -> &'static str {
        match self.from {
            Phase::Expanding => {
                "Split the remaining rows with CALL zdd.backfill(change); SELECT * FROM zdd.verify(change) counts them."
            }
            Phase::Expanded => {
                "The next step is SELECT zdd.fence(change), or CALL zdd.contract(change), which fences too."
            }
            Phase::Fenced => "Go on with CALL zdd.contract(change), or back with SELECT zdd.unfence(change).",
            Phase::Contracted | Phase::RolledBack => "Begin a new change with SELECT zdd.split_column(...).",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_moves() {
        // Rows from, columns to, both in the order of `Phase::ALL`.
        let legal = [
            [false, true, false, false, true],
            [false, false, true, false, true],
            [false, true, false, true, true],
            [false; 5],
            [false; 5],
        ];
        for (from, row) in Phase::ALL.into_iter().zip(legal) {
            for (to, legal) in Phase::ALL.into_iter().zip(row) {
                let expected = if legal { Ok(()) } else { Err(IllegalMove { from, to }) };
                assert_eq!(move_to(from, to), expected);
            }
        }
    }

    #[test]
    fn an_illegal_move_names_the_phase_and_the_next_step() {
        for from in Phase::ALL {
            for error in Phase::ALL.into_iter().filter_map(|to| move_to(from, to).err()) {
                assert!(error.to_string().contains(from.as_str()), "{error}");
                assert!(error.hint().contains("zdd."), "{}", error.hint());
            }
        }
    }

    #[test]
    fn messages() {
        let message = |from, to| IllegalMove { from, to }.to_string();
        assert_eq!(
            message(Phase::Expanding, Phase::Fenced),
            "the change is expanding and cannot become fenced: not all rows are known to carry both shapes yet"
        );
        assert_eq!(
            message(Phase::Expanded, Phase::Contracted),
            "the change is expanded and cannot become contracted: it has not been fenced"
        );
        assert_eq!(
            message(Phase::Contracted, Phase::RolledBack),
            "the change is contracted and cannot become rolled_back: the old column is gone, which is final"
        );
        assert_eq!(message(Phase::Fenced, Phase::Fenced), "the change is already fenced");
    }

    #[test]
    fn a_phase_is_reached_also_when_it_has_been_left_behind() {
        use Phase::*;
        assert!(
            Fenced.has_reached(Expanded) && Contracted.has_reached(Expanding) && RolledBack.has_reached(RolledBack)
        );
        assert!(
            !Expanding.has_reached(Expanded) && !RolledBack.has_reached(Expanded) && !Expanded.has_reached(RolledBack)
        );
    }

    #[test]
    fn words_round_trip() {
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse(), Ok(phase));
        }
        assert_eq!("Expanding".parse::<Phase>(), Err(()));
    }

    #[test]
    fn a_change_is_active_until_it_is_final() {
        let active = Phase::ALL.map(Phase::is_active);
        assert_eq!(active, [true, true, true, false, false]);
        assert_eq!(active.map(|it| !it), Phase::ALL.map(Phase::is_final));
    }
}
