//! What C gives, as Rust wants it.

use std::ffi::{CStr, c_char};
use std::format;
use std::path::Path;
use std::string::String;

use super::failure::Failure;
use super::generate::tandem_generate_options;
use super::tandem_status::{TANDEM_ARGUMENT, TANDEM_TEXT};
use crate::{MAX_DRAFT, MAX_PENALTY_WINDOW, Sampling};

pub(super) fn argument(message: impl Into<String>) -> Failure {
    Failure {
        status: TANDEM_ARGUMENT,
        message: message.into(),
    }
}

pub(super) fn null(name: &str) -> Failure {
    argument(format!("{name} is NULL"))
}

pub(super) fn flag(value: u32, name: &str) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(argument(format!("{name} must be 0 or 1"))),
    }
}

pub(super) fn sampling(options: &tandem_generate_options) -> Result<Sampling, Failure> {
    let wanted = |fits: bool, what: &str| match fits {
        true => Ok(()),
        false => Err(argument(what)),
    };
    let is_probability = |p: f32| (0.0..=1.0).contains(&p);
    let o = options;
    wanted(
        o.temperature >= 0.0 && o.temperature.is_finite(),
        "temperature must be a number of at least 0",
    )?;
    wanted(
        is_probability(o.top_p) && is_probability(o.min_p) && is_probability(o.typical_p),
        "top_p, min_p and typical_p must be between 0 and 1",
    )?;
    wanted(
        o.repeat_penalty > 0.0 && o.repeat_penalty.is_finite(),
        "repeat_penalty must be a number above 0",
    )?;
    wanted(
        o.frequency_penalty.is_finite() && o.presence_penalty.is_finite(),
        "frequency_penalty and presence_penalty must be finite",
    )?;
    wanted(
        o.penalty_window as usize <= MAX_PENALTY_WINDOW,
        "penalty_window must be at most 4096",
    )?;
    wanted(
        o.max_draft as usize <= MAX_DRAFT,
        "max_draft must be at most 15",
    )?;
    Ok(Sampling {
        max_tokens: o.max_tokens as usize,
        stop: Vec::new(),
        temperature: o.temperature,
        penalty_window: o.penalty_window as usize,
        repeat_penalty: o.repeat_penalty,
        frequency_penalty: o.frequency_penalty,
        presence_penalty: o.presence_penalty,
        top_k: o.top_k as usize,
        typical_p: o.typical_p,
        top_p: o.top_p,
        min_p: o.min_p,
        seed: o.seed,
        max_draft: o.max_draft as usize,
    })
}

/// Where a new handle goes.
pub(super) struct Out<P>(*mut *mut P);

impl<P> Out<P> {
    /// Sets it to null, until there is one.
    ///
    /// # Safety
    ///
    /// The pointer is null or can be written to, for as long as this lives.
    pub(super) unsafe fn new(out: *mut *mut P) -> Result<Out<P>, Failure> {
        if out.is_null() {
            return Err(null("the place for the handle"));
        }
        // SAFETY: as the caller promises.
        unsafe { out.write(core::ptr::null_mut()) };
        Ok(Out(out))
    }

    pub(super) fn set(self, handle: *mut P) {
        // SAFETY: who made this promised that it can be written to.
        unsafe { self.0.write(handle) };
    }
}

/// Values that C names: bytes, token ids, messages.
///
/// # Safety
///
/// The pointer is null or to `n` valid values, which stay unchanged for `'a`.
pub(super) unsafe fn slice_at<'a, T>(
    values: *const T,
    n: usize,
    name: &str,
) -> Result<&'a [T], Failure> {
    check_room(values, n, name)?;
    if values.is_null() {
        return Err(null(name));
    }
    // SAFETY: it is aligned and not null, the length is possible, and the caller promises the rest.
    Ok(unsafe { core::slice::from_raw_parts(values, n) })
}

/// Room of the caller's for values, of which there may be more or fewer.
pub(super) struct Room<T> {
    values: *mut T,
    capacity: usize,
}

impl<T: Copy> Room<T> {
    /// No room may be null.
    ///
    /// # Safety
    ///
    /// The pointer is null or has room for `capacity` values, for as long as this lives.
    pub(super) unsafe fn new(
        values: *mut T,
        capacity: usize,
        name: &str,
    ) -> Result<Room<T>, Failure> {
        check_room(values, capacity, name)?;
        match values.is_null() && capacity > 0 {
            true => Err(null(name)),
            false => Ok(Room { values, capacity }),
        }
    }

    /// Whether nothing is wanted.
    pub(super) fn is_null(&self) -> bool {
        self.values.is_null()
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes as many of `found` as there is room for.
    pub(super) fn write(self, found: &[T]) {
        let n = found.len().min(self.capacity);
        if n > 0 {
            // SAFETY: who made this promised room for `capacity` values, which are no fewer; it is
            // null only where that is 0. What was found lies in memory of the engine's own.
            unsafe { core::ptr::copy_nonoverlapping(found.as_ptr(), self.values, n) };
        }
    }
}

/// Whether `n` values can lie there.
fn check_room<T>(values: *const T, n: usize, name: &str) -> Result<(), Failure> {
    if !values.is_aligned() {
        return Err(argument(format!("{name} is not aligned")));
    }
    match n.checked_mul(size_of::<T>()) {
        Some(n_bytes) if n_bytes <= isize::MAX as usize => Ok(()),
        _ => Err(argument(format!("{name}: no {n} of them can be there"))),
    }
}

/// Where one value goes that a call gives besides its status.
pub(super) struct Place<T>(*mut T);

impl<T> Place<T> {
    /// # Safety
    ///
    /// The pointer is null or can be written to, for as long as this lives.
    pub(super) unsafe fn new(place: *mut T, name: &str) -> Result<Place<T>, Failure> {
        match place.is_null() {
            true => Err(null(name)),
            false => Ok(Place(place)),
        }
    }

    pub(super) fn set(self, value: T) {
        // SAFETY: who made this promised that it can be written to, and it is not null.
        unsafe { self.0.write(value) };
    }
}

/// A text that ends with a zero.
///
/// # Safety
///
/// The pointer is null or to such a text, which stays unchanged for `'a`.
pub(super) unsafe fn text_at<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: it is not null, and the caller promises the rest.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map_err(|_| Failure::new(TANDEM_TEXT, format!("{name} is not UTF-8")))
}

/// A file's path: any bytes on Unix, elsewhere UTF-8.
///
/// # Safety
///
/// As [`text_at`].
pub(super) unsafe fn path_at<'a>(path: *const c_char) -> Result<&'a Path, Failure> {
    #[cfg(unix)]
    {
        if path.is_null() {
            return Err(null("path"));
        }
        // SAFETY: it is not null, and the caller promises the rest.
        let path = unsafe { CStr::from_ptr(path) };
        let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(path.to_bytes());
        Ok(Path::new(path))
    }
    #[cfg(not(unix))]
    // SAFETY: as the caller promises.
    unsafe {
        text_at(path, "path").map(Path::new)
    }
}
