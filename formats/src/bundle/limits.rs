//! How much a bundle may hold. Real ones stay well below; what is above is refused before anything
//! is reserved for it.

/// Adapters of a bundle.
pub const MAX_ADAPTERS: usize = 256;
/// Calibrations of a bundle.
pub const MAX_CALIBRATIONS: usize = 256;
/// Compositions of a bundle.
pub const MAX_COMPOSITIONS: usize = 256;
/// Adapters of a composition.
pub const MAX_MEMBERS: usize = 16;
/// Linears of an adapter, or modules of a calibration.
pub const MAX_LINEARS: usize = 4096;
/// Rank of a pair of factors.
pub const MAX_RANK: usize = 4096;
/// Bytes of the name of an adapter, calibration or composition.
pub const MAX_NAME_BYTES: usize = 64;
/// Bytes of the name of a linear or module.
pub const MAX_LINEAR_BYTES: usize = 128;
/// Bytes of a prompt, description or origin, or of the bundle's or the base's name.
pub const MAX_TEXT_BYTES: usize = 1 << 16;
