//! Settings that hold for a while, whoever the current role is.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

/// Under this search_path names without a schema are PostgreSQL's own.
pub const BUILT_IN_PATH: &CStr = c"pg_catalog, pg_temp";

/// A setting that changes what SQL means, with the value under which we read and run it.
pub struct Pin {
    name: &'static CStr,
    value: &'static CStr,
    /// Whether it has that value already. Much quicker to ask than to set, and asked for every row.
    holds: unsafe fn() -> bool,
}

macro_rules! pin {
    ($name:literal = $value:literal, $holds:expr) => {
        Pin {
            name: $name,
            value: $value,
            // SAFETY: reads variables of this backend.
            holds: || {
                #[allow(unused_unsafe)]
                unsafe {
                    $holds
                }
            },
        }
    };
}

impl Pin {
    /// All of them; those for syntax first.
    pub const ALL: &'static [Pin] = &[
        Pin { name: c"search_path", value: BUILT_IN_PATH, holds: has_built_in_path },
        pin!(c"standard_conforming_strings" = c"on", pg_sys::standard_conforming_strings),
        pin!(c"transform_null_equals" = c"off", !pg_sys::Transform_null_equals),
        pin!(
            c"backslash_quote" = c"safe_encoding",
            pg_sys::backslash_quote == pg_sys::BackslashQuoteType::BACKSLASH_QUOTE_SAFE_ENCODING as i32
        ),
        pin!(c"quote_all_identifiers" = c"off", !pg_sys::quote_all_identifiers),
        pin!(c"array_nulls" = c"on", pg_sys::Array_nulls),
        pin!(
            c"DateStyle" = c"ISO, MDY",
            pg_sys::DateStyle == pg_sys::USE_ISO_DATES as i32 && pg_sys::DateOrder == pg_sys::DATEORDER_MDY as i32
        ),
        pin!(c"IntervalStyle" = c"postgres", pg_sys::IntervalStyle == pg_sys::INTSTYLE_POSTGRES as i32),
        Pin { name: c"TimeZone", value: c"UTC", holds: is_utc },
        pin!(c"extra_float_digits" = c"1", pg_sys::extra_float_digits == 1),
        pin!(c"bytea_output" = c"hex", super::ffi::bytea_output_is_hex()),
        pin!(c"xmloption" = c"content", super::ffi::xml_option_is_content()),
    ];

    /// All but the search_path.
    pub const ALL_BUT_SEARCH_PATH: &'static [Pin] = Self::ALL.split_at(1).1;

    /// The search_path.
    pub const SEARCH_PATH: &'static [Pin] = Self::ALL.split_at(1).0;

    /// What the text of a statement of our own means.
    pub const SYNTAX: &'static [Pin] = Self::ALL.split_at(5).0;
}

unsafe fn has_built_in_path() -> bool {
    // SAFETY: a setting of type string is NULL or NUL-terminated.
    unsafe {
        let path = pg_sys::namespace_search_path;
        !path.is_null() && CStr::from_ptr(path) == BUILT_IN_PATH
    }
}

unsafe fn is_utc() -> bool {
    // SAFETY: the session always has a time zone, whose name is NUL-terminated.
    unsafe { CStr::from_ptr(pg_sys::pg_get_timezone_name(pg_sys::session_timezone)) == c"UTC" }
}

/// The name and the value of a setting.
pub type Setting = (&'static CStr, CString);

fn current(name: &CStr) -> CString {
    // SAFETY: NULL or a NUL-terminated text, which is copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() { CString::default() } else { CStr::from_ptr(value).to_owned() }
    }
}

/// Settings that are put back when this is dropped, with all that the code in between has set.
pub struct Settings {
    nest_level: i32,
}

impl Settings {
    /// Gives the pinned settings their values.
    pub fn pin(pins: &[Pin]) -> Settings {
        let settings = Settings::begin();
        for pin in pins {
            // SAFETY: reads variables of this backend, see `Pin`.
            if !unsafe { (pin.holds)() } {
                set(pin.name, pin.value, pg_sys::GucAction::GUC_ACTION_SAVE);
            }
        }
        settings
    }

    /// The same. Returns what it has changed, as it was.
    pub(super) fn pin_noting(pins: &[Pin]) -> (Settings, Vec<Setting>) {
        // SAFETY: reads variables of this backend, see `Pin`.
        let changed = pins.iter().filter(|pin| !unsafe { (pin.holds)() });
        let before = changed.map(|pin| (pin.name, current(pin.name))).collect();
        (Settings::pin(pins), before)
    }

    /// Gives settings these values.
    pub(super) fn of<'s>(values: impl Iterator<Item = (&'s CStr, &'s CStr)>) -> Settings {
        let settings = Settings::begin();
        // This action ties the values to the level.
        values.for_each(|(name, value)| set(name, value, pg_sys::GucAction::GUC_ACTION_SAVE));
        settings
    }

    fn begin() -> Settings {
        // SAFETY: begins a level that `drop` ends, or the abort of the (sub)transaction.
        Settings { nest_level: unsafe { pg_sys::NewGUCNestLevel() } }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: ends the nest level that `begin` began, innermost first as these are dropped. As for an abort: what
            // code in between has set for the session goes too.
            unsafe { pg_sys::AtEOXact_GUC(false, self.nest_level) };
        }
    }
}

/// Runs `f` with some settings changed for its duration.
pub fn with_settings<R>(settings: &[(&CStr, &CStr)], f: impl FnOnce() -> R) -> R {
    let _saved = Settings::of(settings.iter().copied());
    f()
}

/// Runs `f` under settings that let SQL of our own mean what it says.
pub fn with_our_syntax<R>(f: impl FnOnce() -> R) -> R {
    let _saved = Settings::pin(Pin::SYNTAX);
    f()
}

/// Changes a setting until the transaction has ended, its commit included.
pub fn set_local(name: &CStr, value: &CStr) {
    set(name, value, pg_sys::GucAction::GUC_ACTION_LOCAL);
}

fn set(name: &CStr, value: &CStr, action: pg_sys::GucAction::Type) {
    // SAFETY: the strings are NUL-terminated and PostgreSQL copies them.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}
