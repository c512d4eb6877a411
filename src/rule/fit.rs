//! Whether a text value fits a column type without loss.

use std::ops::Range;

/// What a column's type accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Any text, or text of at most so many characters.
    Text { max_chars: Option<u32> },
    /// A 16-bit integer.
    Int2,
    /// A 32-bit integer.
    Int4,
    /// A 64-bit integer.
    Int8,
    /// A decimal number, or one that `numeric(precision, scale)` stores without rounding.
    Numeric { precision_scale: Option<(i32, i32)> },
    /// A type that only PostgreSQL can judge.
    Opaque,
}

/// PostgreSQL's limits: 131072 digits before the decimal point, 16383 after it.
const MAX_FRACTION: usize = 16_383;
const UNCONSTRAINED: Range<i64> = -(MAX_FRACTION as i64)..131_072;

impl Fit {
    /// Whether the value can be stored as it is: never cut off, rounded or trimmed.
    pub fn accepts(&self, value: &str) -> bool {
        match *self {
            Self::Text { max_chars: None } | Self::Opaque => true,
            Self::Text { max_chars: Some(max) } => fits_chars(value, max as usize),
            // Rust's parsers take just an optional sign and digits.
            Self::Int2 => value.parse::<i16>().is_ok(),
            Self::Int4 => value.parse::<i32>().is_ok(),
            Self::Int8 => value.parse::<i64>().is_ok(),
            Self::Numeric { precision_scale: None } => fits_decimal(value, UNCONSTRAINED),
            Self::Numeric { precision_scale: Some((precision, scale)) } => {
                let last = -i64::from(scale);
                fits_decimal(value, last..last + i64::from(precision))
            }
        }
    }
}

fn fits_chars(value: &str, max: usize) -> bool {
    // A character takes one to four bytes.
    value.len() <= max || value.len() / 4 <= max && value.chars().count() <= max
}

/// Whether the value is a number in plain notation whose digits other than 0 all stand in these decimal places
/// (0 is the ones, 1 the tens, -1 the tenths).
fn fits_decimal(value: &str, places: Range<i64>) -> bool {
    let unsigned = value.strip_prefix(['+', '-']).unwrap_or(value);
    let (whole, fraction) = match unsigned.split_once('.') {
        Some((_, "")) => return false,
        Some(parts) => parts,
        None => (unsigned, ""),
    };
    let digits = || whole.bytes().chain(fraction.bytes());
    !whole.is_empty()
        && fraction.len() <= MAX_FRACTION
        && digits().all(|digit| digit.is_ascii_digit())
        && (digits().enumerate())
            .all(|(index, digit)| digit == b'0' || places.contains(&(whole.len() as i64 - 1 - index as i64)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numeric(precision: i32, scale: i32) -> Fit {
        Fit::Numeric { precision_scale: Some((precision, scale)) }
    }

    const ANY_NUMERIC: Fit = Fit::Numeric { precision_scale: None };

    #[track_caller]
    fn check(fit: Fit, accepted: &[&str], rejected: &[&str]) {
        for value in accepted {
            assert!(fit.accepts(value), "{fit:?} rejects {value:?}");
        }
        for value in rejected {
            assert!(!fit.accepts(value), "{fit:?} accepts {value:?}");
        }
    }

    #[test]
    fn text_is_measured_in_characters() {
        let two = Fit::Text { max_chars: Some(2) };
        check(two, &["", "ab", "äö", "\u{1F600}\u{1F600}"], &["abc", "ab ", "äöü"]);
        check(Fit::Text { max_chars: None }, &["", "any text at all"], &[]);
        check(Fit::Opaque, &["", "?"], &[]);
    }

    #[test]
    fn integers_are_strict() {
        let malformed = ["", "+", "-", " 1", "1 ", "1.0", "1e3", "0x1", "1_000", "--1", "١", "NaN"];
        for fit in [Fit::Int2, Fit::Int4, Fit::Int8] {
            check(fit, &["0", "-0", "+7", "007", "-12"], &malformed);
        }
        check(Fit::Int2, &["32767", "-32768"], &["32768", "-32769"]);
        check(Fit::Int4, &["2147483647", "-2147483648"], &["2147483648", "-2147483649"]);
        check(
            Fit::Int8,
            &["9223372036854775807", "-9223372036854775808"],
            &["9223372036854775808", "-9223372036854775809"],
        );
    }

    #[test]
    fn numerics_are_plain_decimals() {
        let malformed = [
            "", "+", ".", ".5", "5.", "1.2.3", "1,5", "1e3", "NaN", "Infinity", "inf", " 1", "1 ", "- 1", "0x1", "1_0",
            "١",
        ];
        check(ANY_NUMERIC, &["0", "-0.0", "+12", "0012.3400", "-99999999999999999999.5"], &malformed);
        check(numeric(38, 10), &["0"], &malformed);
    }

    #[test]
    fn unconstrained_numerics_have_the_server_s_limits() {
        let whole = |digits| "9".repeat(digits);
        let fraction = |digits| format!("0.{}", "1".repeat(digits));
        check(ANY_NUMERIC, &[&whole(131_072), &fraction(16_383)], &[&whole(131_073), &fraction(16_384)]);
    }

    #[test]
    fn numerics_are_never_rounded() {
        check(
            numeric(5, 2),
            &["999.99", "-999.99", "0001.50", "1.5000", "0"],
            &["1000", "0.001", "999.999", "-1000.00"],
        );
        check(numeric(3, 0), &["999", "1.000"], &["1000", "1.5"]);
    }

    #[test]
    fn a_negative_scale_demands_zeros_before_the_point() {
        check(numeric(2, -3), &["99000", "-1000", "0", "0.0"], &["100000", "99500", "1", "1000.5"]);
    }

    #[test]
    fn a_scale_above_the_precision_demands_zeros_after_the_point() {
        check(numeric(3, 5), &["0.00999", "0.00001", "-0.00123", "0"], &["0.01", "0.000001", "1", "0.1"]);
    }

    proptest! {
        #[test]
        fn never_panics(value in ".*", precision in any::<i32>(), scale in any::<i32>(), max in any::<u32>()) {
            for fit in [Fit::Text { max_chars: Some(max) }, Fit::Int2, Fit::Int4, Fit::Int8, ANY_NUMERIC, numeric(precision, scale)] {
                fit.accepts(&value);
            }
        }

        #[test]
        fn text_agrees_with_counting(value in ".{0,12}", max in 0u32..16) {
            prop_assert_eq!(Fit::Text { max_chars: Some(max) }.accepts(&value), value.chars().count() <= max as usize);
        }

        /// The number is mantissa / 10^decimals; all arithmetic here is exact.
        #[test]
        fn numeric_agrees_with_arithmetic(
            mantissa in -10_000_000i128..10_000_000, zeros in 0u32..6, decimals in 0u32..8, precision in 1i32..8, scale in -6i32..8,
        ) {
            let mantissa = mantissa * 10i128.pow(zeros);
            let (whole, fraction) = (mantissa.abs() / 10i128.pow(decimals), mantissa.abs() % 10i128.pow(decimals));
            let sign = if mantissa < 0 { "-" } else { "" };
            let value = match decimals as usize {
                0 => format!("{sign}{whole}"),
                decimals => format!("{sign}{whole}.{fraction:0decimals$}"),
            };
            // In units of 10^-8, of which 10^-scale is a multiple.
            let units = mantissa.abs() * 10i128.pow(8 - decimals);
            let last_place = 10i128.pow((8 - scale) as u32);
            let fits = units % last_place == 0 && units < last_place * 10i128.pow(precision as u32);
            prop_assert_eq!(numeric(precision, scale).accepts(&value), fits, "{}", value);
        }
    }
}
