//! CPU levels: which instructions the kernels may use. The only place that detects features.

/// Proof that the CPU has AVX-512 F, BW, VL, DQ and VNNI besides AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

/// The instruction sets that a kernel may use, lowest first.
///
/// Made once by [`Level::detect`] and passed to every kernel; a kernel without a body for a level
/// uses the next lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust, on any CPU: the oracle of the others.
    Scalar,
    /// AVX-512 with VNNI: Intel since Ice Lake, AMD since Zen 4.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Level {
    /// The levels that this CPU has, lowest first. Without `std` there is nothing to ask, and only
    /// [`Level::Scalar`] is known.
    pub fn available() -> impl Iterator<Item = Level> {
        #[cfg(all(target_arch = "x86_64", feature = "std"))]
        let avx512 = (std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vnni")
            && std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c"))
        .then_some(Level::Avx512(Avx512(())));
        #[cfg(not(all(target_arch = "x86_64", feature = "std")))]
        let avx512 = None;
        core::iter::once(Level::Scalar).chain(avx512)
    }

    /// The highest level that this CPU has.
    pub fn detect() -> Level {
        Level::available().last().unwrap_or(Level::Scalar)
    }

    /// The level of this name, if this CPU has it.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::available().find(|level| level.name() == name)
    }

    /// The level's name, as `--cpu` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
        }
    }
}

/// Compiles a function once for each level: plain Rust that the compiler vectorizes with what the
/// level has. The results are the same to the bit, as it may neither reorder nor fuse operations.
macro_rules! multilevel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($level:ident: Level $(, $arg:ident: $type:ty)* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name($level: $crate::Level $(, $arg: $type)*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            fn avx512($($arg: $type),*) {
                body($($arg),*)
            }

            match $level {
                $crate::Level::Scalar => body($($arg),*),
                // SAFETY: the level's token proves that the CPU has the features.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx512(_) => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use multilevel;
