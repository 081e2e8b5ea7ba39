//! CPU levels: which instructions the kernels may use. The only place that detects features.

/// The instruction sets that a kernel may use, lowest first.
///
/// Made once by [`Level::detect`] and passed to every kernel; a kernel without a body for a level
/// uses the next lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust, on any CPU: the oracle of the others.
    Scalar,
}

impl Level {
    /// The highest level that this CPU has.
    pub fn detect() -> Level {
        Level::Scalar
    }

    /// The level's name, as `TANDEM_CPU` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
        }
    }
}
