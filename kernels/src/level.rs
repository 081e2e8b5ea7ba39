//! CPU levels: which instructions the kernels may use. The only place that detects features.

/// Declares the proof tokens: values that only detection makes.
macro_rules! tokens {
    ($($(#[$meta:meta])* $name:ident;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(());
    )*};
}

tokens! {
    /// Proof that the CPU has AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2;
    /// Proof that the CPU has AVX-VNNI besides [`Avx2`].
    #[cfg(target_arch = "x86_64")]
    AvxVnni;
    /// Proof that the CPU has AVX-512 F, BW, VL, DQ and VNNI besides what [`Avx2`] says.
    #[cfg(target_arch = "x86_64")]
    Avx512;
    /// Proof that the CPU has Advanced SIMD.
    #[cfg(target_arch = "aarch64")]
    Neon;
    /// Proof that the CPU has int8 dot products besides [`Neon`].
    #[cfg(target_arch = "aarch64")]
    Dotprod;
    /// Proof that the CPU has int8 matrix products besides [`Dotprod`].
    #[cfg(target_arch = "aarch64")]
    I8mm;
}

/// The instruction sets that a kernel may use, lowest first.
///
/// Made once by [`Level::detect`] and passed to every kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust, on any CPU: the oracle of the others.
    Scalar,
    /// AVX2, FMA, F16C: Intel since Haswell, AMD since Zen.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX2 with VNNI: Intel since Alder Lake, its N100 included, AMD since Zen 5.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    /// AVX-512 with VNNI: Intel servers since Ice Lake, AMD since Zen 4.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// Armv8.0: Raspberry Pi 3, 4 and Zero 2 W, Jetson Nano; Armv8.2 without dot products: Jetson
    /// Xavier NX.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// With dot products: Raspberry Pi 5, Jetson Orin.
    #[cfg(target_arch = "aarch64")]
    Dotprod(Dotprod),
    /// With matrix products: Cortex-A710 and later, Neoverse V1 and N2.
    #[cfg(target_arch = "aarch64")]
    I8mm(I8mm),
}

/// Whether the CPU, or without `std` the target that this was compiled for, has a feature.
#[cfg(target_arch = "x86_64")]
macro_rules! has {
    ($feature:tt) => {{
        #[cfg(feature = "std")]
        let has = std::arch::is_x86_feature_detected!($feature);
        #[cfg(not(feature = "std"))]
        let has = cfg!(target_feature = $feature);
        has
    }};
}
#[cfg(target_arch = "aarch64")]
macro_rules! has {
    ($feature:tt) => {{
        #[cfg(feature = "std")]
        let has = std::arch::is_aarch64_feature_detected!($feature);
        #[cfg(not(feature = "std"))]
        let has = cfg!(target_feature = $feature);
        has
    }};
}

impl Level {
    /// The levels that this CPU has, lowest first. Without `std` there is nothing to ask: then
    /// those of the target that this was compiled for; see also [`Level::assume`].
    pub fn available() -> impl Iterator<Item = Level> {
        #[cfg(target_arch = "x86_64")]
        let levels = {
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = avx2
                && has!("avx512f")
                && has!("avx512bw")
                && has!("avx512vl")
                && has!("avx512dq")
                && has!("avx512vnni");
            let avx_vnni = avx2 && has!("avxvnni");
            [
                avx2.then_some(Level::Avx2(Avx2(()))),
                avx_vnni.then_some(Level::AvxVnni(AvxVnni(()))),
                avx512.then_some(Level::Avx512(Avx512(()))),
            ]
        };
        #[cfg(target_arch = "aarch64")]
        let levels = {
            let neon = has!("neon");
            let dotprod = neon && has!("dotprod");
            let i8mm = dotprod && has!("i8mm");
            [
                neon.then_some(Level::Neon(Neon(()))),
                dotprod.then_some(Level::Dotprod(Dotprod(()))),
                i8mm.then_some(Level::I8mm(I8mm(()))),
            ]
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let levels: [Option<Level>; 0] = [];
        core::iter::once(Level::Scalar).chain(levels.into_iter().flatten())
    }

    /// The highest level that this CPU has.
    pub fn detect() -> Level {
        Level::available().last().unwrap_or(Level::Scalar)
    }

    /// The level of this name, if this CPU has it.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::available().find(|level| level.name() == name)
    }

    /// The level of this name, without asking the CPU: for programs without `std` that know what
    /// they run on.
    ///
    /// # Safety
    ///
    /// The CPU has the level's features, and the operating system, if any, saves their registers.
    pub unsafe fn assume(name: &str) -> Option<Level> {
        let levels = [
            Level::Scalar,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(Avx2(())),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni(AvxVnni(())),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(Avx512(())),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(Neon(())),
            #[cfg(target_arch = "aarch64")]
            Level::Dotprod(Dotprod(())),
            #[cfg(target_arch = "aarch64")]
            Level::I8mm(I8mm(())),
        ];
        levels.into_iter().find(|level| level.name() == name)
    }

    /// The level's name, as `--cpu` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::Dotprod(_) => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Level::I8mm(_) => "i8mm",
        }
    }
}

/// Compiles a function once for each level: plain Rust that the compiler vectorizes with what the
/// level has. The results are the same to the bit, as it may neither reorder nor fuse operations.
macro_rules! multilevel {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($level:ident: Level $(, $arg:ident: $type:ty)* $(,)?)
            $(-> $result:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name($level: $crate::Level $(, $arg: $type)*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) $(-> $result)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            fn avx512($($arg: $type),*) $(-> $result)? {
                body($($arg),*)
            }

            match $level {
                // SAFETY: the level's token proves that the CPU has the features.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx2(_) | $crate::Level::AvxVnni(_) => unsafe { avx2($($arg),*) },
                // SAFETY: likewise.
                #[cfg(target_arch = "x86_64")]
                $crate::Level::Avx512(_) => unsafe { avx512($($arg),*) },
                // Arm's vectors are part of the target that all of it is compiled for.
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use multilevel;
