//! What C gives, as Rust wants it.

use std::ffi::{CStr, c_char};
use std::format;
use std::path::Path;
use std::string::String;

use super::failure::Failure;
use super::tandem_generate_options;
use super::tandem_status::{TANDEM_ARGUMENT, TANDEM_TEXT};
use crate::{MAX_PENALTY_WINDOW, SamplerOptions};

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

pub(super) fn sampler_options(
    options: &tandem_generate_options,
) -> Result<SamplerOptions, Failure> {
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
    Ok(SamplerOptions {
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

/// Bytes that C names.
///
/// # Safety
///
/// The pointer is null or to `n_bytes`, which stay unchanged for `'a`.
pub(super) unsafe fn bytes_at<'a>(
    bytes: *const u8,
    n_bytes: usize,
    name: &str,
) -> Result<&'a [u8], Failure> {
    if bytes.is_null() {
        return Err(null(name));
    }
    if n_bytes > isize::MAX as usize {
        return Err(argument(format!("{name}: no {n_bytes} bytes can be there")));
    }
    // SAFETY: it is not null, the length is possible, and the caller promises the rest.
    Ok(unsafe { core::slice::from_raw_parts(bytes, n_bytes) })
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
