//! The element types a tensor may have, with the numbers that GGUF files give them.

/// Every type, a row each, from which all follows that asks for the type of a tensor: a new one cannot be
/// forgotten anywhere. A row is its name, its number in GGUF files, the elements of a block `in` its bytes
/// (plain types are blocks of one element), whether it can be `encoded` or is only `decoded`, and for
/// quantized types the module of `quant` that does so and the format in `simd/load.rs` that loads it.
///
/// `dtypes!(make extra)` is `make! { [extra] rows }`.
macro_rules! dtypes {
    ($make:ident $($extra:tt)*) => {
        $make! {
            [$($extra)*]
            F32 = 0, 1 in 4, encoded;
            F16 = 1, 1 in 2, encoded;
            Q4_0 = 2, 32 in 18, encoded, q4_0;
            Q4_1 = 3, 32 in 20, encoded, q4_1;
            Q5_0 = 6, 32 in 22, encoded, q5_0;
            Q5_1 = 7, 32 in 24, encoded, q5_1;
            Q8_0 = 8, 32 in 34, encoded, q8_0;
            Q8_1 = 9, 32 in 36, encoded, q8_1;
            Q2_K = 10, 256 in 84, encoded, q2_k;
            Q3_K = 11, 256 in 110, encoded, q3_k;
            Q4_K = 12, 256 in 144, encoded, q4_k;
            Q5_K = 13, 256 in 176, encoded, q5_k;
            Q6_K = 14, 256 in 210, encoded, q6_k;
            Q8_K = 15, 256 in 292, encoded, q8_k;
            IQ2_XXS = 16, 256 in 66, decoded, iq2_xxs;
            IQ2_XS = 17, 256 in 74, decoded, iq2_xs;
            IQ3_XXS = 18, 256 in 98, decoded, iq3_xxs;
            IQ1_S = 19, 256 in 50, decoded, iq1_s;
            IQ4_NL = 20, 32 in 18, encoded, iq4_nl;
            IQ3_S = 21, 256 in 110, decoded, iq3_s;
            IQ2_S = 22, 256 in 82, decoded, iq2_s;
            IQ4_XS = 23, 256 in 136, encoded, iq4_xs;
            I8 = 24, 1 in 1, decoded;
            I16 = 25, 1 in 2, decoded;
            I32 = 26, 1 in 4, decoded;
            I64 = 27, 1 in 8, decoded;
            F64 = 28, 1 in 8, decoded;
            IQ1_M = 29, 256 in 56, decoded, iq1_m;
            BF16 = 30, 1 in 2, encoded;
            TQ1_0 = 34, 256 in 54, encoded, tq1_0;
            TQ2_0 = 35, 256 in 66, encoded, tq2_0;
            MXFP4 = 39, 32 in 17, decoded, mxfp4;
        }
    };
}
pub(crate) use dtypes;

macro_rules! define {
    ([] $(
        $name:ident = $id:literal, $len:literal in $bytes:literal, $coding:ident $(, $module:ident)?;
    )*) => {
        /// How a tensor's elements are stored. The discriminant is the type's number in GGUF files.
        ///
        /// Block types store [`DType::block_len`] consecutive elements of a row in
        /// [`DType::block_bytes`] bytes; plain types are blocks of one element.
        #[allow(non_camel_case_types, missing_docs)] // the names are ggml's, known to every user of it
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum DType {
            $($name = $id,)*
        }

        impl DType {
            /// Every type, in the order of their numbers.
            pub const ALL: [DType; [$($id),*].len()] = [$(DType::$name),*];

            /// The name that ggml prints.
            pub fn name(self) -> &'static str {
                match self {
                    $(DType::$name => stringify!($name),)*
                }
            }

            /// Elements in one block: 1 for plain types, 32 or 256 for quantized ones.
            pub const fn block_len(self) -> usize {
                match self {
                    $(DType::$name => $len,)*
                }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(DType::$name => $bytes,)*
                }
            }
        }
    };
}

dtypes!(define);

impl DType {
    /// The type with this number in a GGUF file, or `None` for numbers unknown or retired.
    pub fn from_ggml_id(id: u32) -> Option<DType> {
        Self::ALL.into_iter().find(|t| *t as u32 == id)
    }

    /// The type with this name, in any case: `q4_0`, `Q4_K`, `f16`.
    pub fn from_name(name: &str) -> Option<DType> {
        Self::ALL
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `n_cols` elements; `None` where the row is no whole number of blocks or
    /// the size overflows.
    pub fn row_bytes(self, n_cols: usize) -> Option<usize> {
        if !n_cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (n_cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether the type stores elements in blocks with shared scales.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl core::fmt::Display for DType {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_round_trip() {
        for t in DType::ALL {
            assert_eq!(DType::from_ggml_id(t as u32), Some(t));
            assert_eq!(DType::from_name(&t.name().to_lowercase()), Some(t));
        }
        // Retired types (Q4_2, Q4_3, the repacked Q4_0 variants) and unknown ones.
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 40, u32::MAX] {
            assert_eq!(DType::from_ggml_id(id), None);
        }
    }

    #[test]
    fn row_bytes_refuses_partial_blocks_and_overflow() {
        assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(DType::Q4_0.row_bytes(33), None);
        assert_eq!(DType::Q6_K.row_bytes(0), Some(0));
        assert_eq!(DType::F64.row_bytes(usize::MAX), None);
    }
}
