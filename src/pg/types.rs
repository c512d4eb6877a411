//! Column types: what they are called, what fits, how values travel between datums and text.

use std::borrow::Cow;

use pgrx::{FromDatum, pg_sys, varlena};

use super::ffi::datum_copy;
use super::gate::Gate;
use super::inspect::{ObjectId, made_of};
use super::lock::check_for_interrupts;
use super::lookup;
use super::settings::{Pin, Settings};
use super::value::Value;
use crate::rule::Fit;

/// The type of a column.
#[derive(Clone, Debug)]
pub struct ColumnType {
    pub oid: pg_sys::Oid,
    pub typmod: i32,
    pub collation: pg_sys::Oid,
    /// What fits, without loss; opaque for types that only SQL rules can handle.
    pub fit: Fit,
    /// The type, or below a domain its base type.
    base: pg_sys::Oid,
    base_typmod: i32,
    pub(super) len: i16,
    pub(super) by_value: bool,
}

impl ColumnType {
    /// Looks a type up.
    pub fn new(oid: pg_sys::Oid, typmod: i32, collation: pg_sys::Oid) -> ColumnType {
        let mut base_typmod = typmod;
        let (mut len, mut by_value, mut align) = (0, false, 0);
        // SAFETY: the OID comes from a catalog or the parser, so the type exists; the out arguments are ours.
        let base = unsafe {
            let base = pg_sys::getBaseTypeAndTypmod(oid, &mut base_typmod);
            pg_sys::get_typlenbyvalalign(oid, &mut len, &mut by_value, &mut align);
            base
        };
        let fit = fit(base, base_typmod);
        ColumnType { oid, typmod, collation, fit, base, base_typmod, len, by_value }
    }

    /// Its name with modifiers, qualified unless built in, as `format_type` writes it.
    pub fn name(&self) -> String {
        // As one session writes it so does every other.
        let _settings = Settings::pin(Pin::ALL_BUT_SEARCH_PATH);
        let flags = pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY;
        // SAFETY: gives a palloc'ed string.
        unsafe { super::c_string(pg_sys::format_type_extended(self.oid, self.typmod, flags as _)) }
    }

    /// Whether values are text.
    pub fn is_text(&self) -> bool {
        matches!(self.fit, Fit::Text { .. })
    }

    /// Whether values are filled up with blanks.
    pub fn is_padded(&self) -> bool {
        self.base == pg_sys::BPCHAROID
    }

    /// Whether regex, delimiter and template can handle it.
    pub fn is_opaque(&self) -> bool {
        self.fit == Fit::Opaque
    }

    /// Whether it is a domain with CHECK or NOT NULL, or over one. Told by the catalogs: PostgreSQL's own function for it plans
    /// the CHECKs, and so runs code.
    pub fn has_domain_constraints(&self) -> bool {
        self.base != self.oid && made_of(self.oid).into_iter().any(lookup::is_constrained_domain)
    }

    /// What it is made of and that is not built in: the type itself, below a domain what that is over, and the collation.
    pub fn user_objects(&self) -> Vec<ObjectId> {
        let types = made_of(self.oid).into_iter().map(|oid| ObjectId { class: pg_sys::TypeRelationId, oid });
        let collation = ObjectId { class: pg_sys::CollationRelationId, oid: self.collation };
        types.chain([collation]).filter(|object| object.oid.to_u32() >= pg_sys::FirstNormalObjectId).collect()
    }

    /// An error if a domain's constraints reject the value.
    pub fn check_domain(&self, _gate: &Gate, value: Value) {
        // SAFETY: the value is of the domain's base type; without `extra` nothing is cached across calls.
        unsafe {
            pg_sys::domain_check(
                value.0.unwrap_or(pg_sys::Datum::from(0)),
                value.is_null(),
                self.oid,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            );
        }
    }

    /// The value for a text, in the current memory context; `None` if it does not fit.
    pub fn encode(&self, text: &str) -> Option<Value> {
        if !self.fit.accepts(text) {
            return None;
        }
        let datum = match self.fit {
            Fit::Text { .. } if self.base == pg_sys::BPCHAROID && self.base_typmod > HEADER => {
                let width = (self.base_typmod - HEADER) as usize;
                let missing = width.saturating_sub(text.chars().count());
                new_text(text, missing)
            }
            Fit::Text { .. } => new_text(text, 0),
            Fit::Int2 => pg_sys::Datum::from(text.parse::<i16>().ok()?),
            Fit::Int4 => pg_sys::Datum::from(text.parse::<i32>().ok()?),
            Fit::Int8 => pg_sys::Datum::from(text.parse::<i64>().ok()?),
            Fit::Numeric { .. } => {
                // SAFETY: numeric_in takes a C string, an unused OID and the modifier; the text has been checked to be
                // a number that fits, so there is no NUL in it.
                unsafe {
                    let text = pg_sys::pnstrdup(text.as_ptr().cast(), text.len());
                    pgrx::direct_function_call_as_datum(
                        pg_sys::numeric_in,
                        &[
                            Some(pg_sys::Datum::from(text)),
                            Some(pg_sys::Datum::from(pg_sys::InvalidOid)),
                            Some(pg_sys::Datum::from(self.base_typmod)),
                        ],
                    )?
                }
            }
            Fit::Opaque => return None,
        };
        Some(Value(Some(datum)))
    }

    /// The text of a value that is not NULL, as the rules see it. What can be long is borrowed, from the value or the
    /// current memory context: it lives as long as the memory that the value was read into. `None` if it is not text, or
    /// not UTF-8.
    pub fn decode<'v>(&self, value: &'v Value) -> Option<Cow<'v, str>> {
        let datum = value.0?;
        Some(match self.fit {
            Fit::Text { .. } => {
                // SAFETY: a text-like column's datum is a varlena.
                let text = std::str::from_utf8(unsafe { text_bytes(datum) }).ok()?;
                Cow::Borrowed(if self.base == pg_sys::BPCHAROID { text.trim_end_matches(' ') } else { text })
            }
            // SAFETY: the datum is of this type, which is passed by value.
            Fit::Int2 => Cow::Owned(unsafe { i16::from_datum(datum, false) }?.to_string()),
            Fit::Int4 => Cow::Owned(unsafe { i32::from_datum(datum, false) }?.to_string()),
            Fit::Int8 => Cow::Owned(unsafe { i64::from_datum(datum, false) }?.to_string()),
            // SAFETY: numeric_out takes a numeric and gives a C string, in the current context.
            Fit::Numeric { .. } => Cow::Borrowed(unsafe {
                let text = pgrx::direct_function_call_as_datum(pg_sys::numeric_out, &[Some(datum)])?;
                core::ffi::CStr::from_ptr(text.cast_mut_ptr()).to_str().ok()?
            }),
            Fit::Opaque => return None,
        })
    }

    /// What to show of a value as its type writes it; `None` for NULL.
    pub fn output(&self, _gate: &Gate, value: Value, show: impl FnOnce(&str) -> String) -> Option<String> {
        let datum = value.0?;
        let (mut function, mut is_varlena) = (pg_sys::InvalidOid, false);
        // SAFETY: the value is of this type, whose output function gives a palloc'ed string.
        unsafe {
            pg_sys::getTypeOutputInfo(self.oid, &mut function, &mut is_varlena);
            let text = pg_sys::OidOutputFunctionCall(function, datum);
            let shown = show(&core::ffi::CStr::from_ptr(text).to_string_lossy());
            pg_sys::pfree(text.cast());
            Some(shown)
        }
    }

    /// The length of a text value in bytes, found without fetching or decompressing it. 0 for other types.
    pub fn text_length(&self, value: Value) -> usize {
        match (value.0, self.is_text()) {
            // SAFETY: a text-like column's datum is a varlena.
            (Some(datum), true) => unsafe {
                let text = datum.cast_mut_ptr::<pg_sys::varlena>();
                if is_plain(text) {
                    varlena::varsize_any_exhdr(text)
                } else {
                    pg_sys::toast_raw_datum_size(datum).saturating_sub(HEADER as usize)
                }
            },
            _ => 0,
        }
    }

    /// Whether two values have the same binary image, whatever the type's own equality says.
    pub fn same_image(&self, left: Value, right: Value) -> bool {
        let (left, right) = match (left.0, right.0) {
            (Some(left), Some(right)) => (left, right),
            (left, right) => return left.is_none() && right.is_none(),
        };
        if left.value() == right.value() {
            return true;
        }
        if self.by_value {
            return self.stored_bits(left) == self.stored_bits(right);
        }
        // SAFETY: both datums are of this type, and so of its length.
        unsafe {
            match self.len {
                -1 => {
                    let (a, b) = (left.cast_mut_ptr(), right.cast_mut_ptr());
                    (toast_pointer(a) == toast_pointer(b) && toast_pointer(a).is_some())
                        || raw_size(a) == raw_size(b) && text_bytes(left) == text_bytes(right)
                }
                -2 => core::ffi::CStr::from_ptr(left.cast_mut_ptr()) == core::ffi::CStr::from_ptr(right.cast_mut_ptr()),
                len => {
                    let bytes =
                        |datum: pg_sys::Datum| std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), len as usize);
                    bytes(left) == bytes(right)
                }
            }
        }
    }

    /// Adds a value as it is stored to a hash; what is stored elsewhere is not fetched.
    pub fn hash_stored(&self, value: Value, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        value.is_null().hash(hasher);
        let Some(datum) = value.0 else { return };
        // SAFETY: the datum is of this type, and so of its length.
        unsafe {
            match self.len {
                _ if self.by_value => self.stored_bits(datum).hash(hasher),
                -1 => {
                    let stored = datum.cast_mut_ptr::<pg_sys::varlena>();
                    let size = varlena::varsize_any(stored);
                    // As many bytes at once as take a millisecond.
                    for bytes in std::slice::from_raw_parts(stored.cast::<u8>(), size).chunks(1 << 20) {
                        bytes.hash(hasher);
                        check_for_interrupts();
                    }
                }
                -2 => core::ffi::CStr::from_ptr(datum.cast_mut_ptr()).hash(hasher),
                len => std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), len as usize).hash(hasher),
            }
        }
    }

    /// What of a by-value datum is the value: how the rest is filled depends on where it comes from.
    fn stored_bits(&self, datum: pg_sys::Datum) -> usize {
        match self.len {
            1 => datum.value() & 0xff,
            2 => datum.value() & 0xffff,
            4 => datum.value() & 0xffff_ffff,
            _ => datum.value(),
        }
    }

    /// A copy of the value in the current memory context.
    pub fn copy(&self, value: Value) -> Value {
        // SAFETY: the value is of this type.
        Value(value.0.map(|datum| unsafe { datum_copy(datum, self.by_value, self.len) }))
    }
}

/// The length word of a varlena, which type modifiers include too.
const HEADER: i32 = pg_sys::VARHDRSZ as i32;

fn fit(base: pg_sys::Oid, typmod: i32) -> Fit {
    let max_chars = (typmod > HEADER).then(|| (typmod - HEADER) as u32);
    match base {
        pg_sys::TEXTOID => Fit::Text { max_chars: None },
        pg_sys::VARCHAROID | pg_sys::BPCHAROID => Fit::Text { max_chars },
        pg_sys::INT2OID => Fit::Int2,
        pg_sys::INT4OID => Fit::Int4,
        pg_sys::INT8OID => Fit::Int8,
        pg_sys::NUMERICOID => Fit::Numeric {
            precision_scale: (typmod >= HEADER).then(|| {
                let packed = typmod - HEADER;
                // The scale is 11 bits with a sign.
                let scale = ((packed & 0x7ff) ^ 0x400) - 0x400;
                ((packed >> 16) & 0xffff, scale)
            }),
        },
        _ if is_citext(base) => Fit::Text { max_chars: None },
        _ => Fit::Opaque,
    }
}

/// citext is an extension's type, so it has no fixed OID; it is stored as text is.
fn is_citext(oid: pg_sys::Oid) -> bool {
    // SAFETY: the type exists; gives a palloc'ed string.
    let name = unsafe { super::c_string(pg_sys::format_type_extended(oid, -1, 0)) };
    let (mut category, mut preferred) = (0, false);
    // SAFETY: the type exists, and the out arguments are ours.
    unsafe { pg_sys::get_type_category_preferred(oid, &mut category, &mut preferred) };
    category as u8 == b'S' && (name == "citext" || name.ends_with(".citext"))
}

/// A new varlena of the text and some blanks.
fn new_text(text: &str, blanks: usize) -> pg_sys::Datum {
    let size = HEADER as usize + text.len() + blanks;
    // SAFETY: the allocation holds the header, the text and the blanks; palloc raises an error rather than give NULL or
    // more than a length word can say.
    unsafe {
        let datum = pg_sys::palloc(size).cast::<pg_sys::varlena>();
        varlena::set_varsize_4b(datum, size as i32);
        let bytes = datum.cast::<u8>().add(HEADER as usize);
        std::ptr::copy_nonoverlapping(text.as_ptr(), bytes, text.len());
        std::ptr::write_bytes(bytes.add(text.len()), b' ', blanks);
        pg_sys::Datum::from(datum)
    }
}

/// Whether a varlena is neither compressed nor stored elsewhere.
unsafe fn is_plain(datum: *mut pg_sys::varlena) -> bool {
    // SAFETY: the caller passes a varlena.
    unsafe { varlena::varatt_is_4b_u(datum) || (varlena::varatt_is_1b(datum) && !varlena::varatt_is_1b_e(datum)) }
}

/// The bytes of a varlena, fetched and decompressed as needed.
unsafe fn text_bytes<'v>(datum: pg_sys::Datum) -> &'v [u8] {
    // SAFETY: the caller passes a varlena that outlives the result; a detoasted copy lives in the current context.
    unsafe {
        let mut plain = datum.cast_mut_ptr::<pg_sys::varlena>();
        if !is_plain(plain) {
            plain = pg_sys::pg_detoast_datum_packed(plain);
        }
        let data = varlena::vardata_any(plain).cast::<u8>();
        std::slice::from_raw_parts(data, varlena::varsize_any_exhdr(plain))
    }
}

/// The size of a varlena's contents once fetched and decompressed.
unsafe fn raw_size(datum: *mut pg_sys::varlena) -> usize {
    // SAFETY: the caller passes a varlena.
    unsafe {
        if is_plain(datum) {
            varlena::varsize_any_exhdr(datum)
        } else {
            pg_sys::toast_raw_datum_size(pg_sys::Datum::from(datum)).saturating_sub(HEADER as usize)
        }
    }
}

/// The pointer itself of a value that is stored elsewhere: two equal ones are the same value, unfetched.
unsafe fn toast_pointer<'v>(datum: *mut pg_sys::varlena) -> Option<&'v [u8]> {
    // SAFETY: the caller passes a varlena; an external one has the size that its tag says.
    unsafe {
        varlena::varatt_is_1b_e(datum)
            .then(|| std::slice::from_raw_parts(datum.cast::<u8>(), varlena::varsize_external(datum)))
    }
}
