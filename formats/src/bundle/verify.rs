//! Checksums, and whether a bundle fits a base model.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::check::layer_and_module;
use super::contents::{
    Adapter, Calibration, Composition, Contents, Factors, Member, MergedFactors,
};
use super::{BaseFingerprint, Bundle, BundleError, CalibrationKind};
use crate::Gguf;

/// The bytes of an adapter, calibration or stored merge, and what they should hash to.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// "adapter", "calibration" or "composition".
    pub(super) what: &'static str,
    pub(super) name: String,
    pub(super) bytes: Bytes,
    pub(super) hash: u128,
    pub(super) state: State,
}

/// Whether a section was found to be whole.
#[derive(Debug, Default)]
pub(super) struct State {
    is_whole: AtomicBool,
}

impl Clone for State {
    fn clone(&self) -> Self {
        State {
            is_whole: AtomicBool::new(self.is_whole.load(Ordering::Relaxed)),
        }
    }
}

/// XXH3 with 128 bits and its default secret.
pub(super) fn hash(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

/// What running a composition takes, checked against the checksums.
#[derive(Clone, Debug)]
pub struct Parts<'b> {
    /// The composition.
    pub composition: &'b Composition,
    /// Its adapters and their weights, none where the merge is stored; and the checksum of each
    /// one's section, which tells its matrices from others without another look at them.
    pub members: Vec<(&'b Adapter, f32, u128)>,
    /// The stored merge, and the checksum of its section.
    pub merged: Option<(&'b MergedFactors, u128)>,
    /// Its calibration.
    pub calibration: Option<&'b Calibration>,
}

impl Bundle {
    /// The parts of composition `name`. Their sections are read to check them, each when it is
    /// first asked for.
    ///
    /// # Errors
    /// [`BundleError::NoSuch`]; [`BundleError::Damaged`] where a checksum does not agree.
    pub fn parts(&self, name: &str) -> Result<Parts<'_>, BundleError> {
        let composition = self.contents.composition(name)?;
        let (mut members, mut merged) = (Vec::new(), None);
        match &composition.merged {
            Some(stored) => merged = Some((stored, self.verify_section("composition", name)?)),
            None => {
                for Member { adapter, weight } in &composition.members {
                    let (adapter, checksum) = self.adapter(adapter)?;
                    members.push((adapter, *weight, checksum));
                }
            }
        }
        let calibration = match &composition.calibration {
            Some(name) => Some(self.calibration(name)?),
            None => None,
        };
        Ok(Parts {
            composition,
            members,
            merged,
            calibration,
        })
    }

    /// The adapter `name`, checked against its checksum, and that.
    ///
    /// # Errors
    /// [`BundleError::NoSuch`], [`BundleError::Damaged`].
    pub fn adapter(&self, name: &str) -> Result<(&Adapter, u128), BundleError> {
        let adapter = self.contents.adapter(name)?;
        Ok((adapter, self.verify_section("adapter", name)?))
    }

    /// The calibration `name`, checked against its checksum.
    ///
    /// # Errors
    /// [`BundleError::NoSuch`], [`BundleError::Damaged`].
    pub fn calibration(&self, name: &str) -> Result<&Calibration, BundleError> {
        let calibration = self.contents.calibration(name)?;
        self.verify_section("calibration", name)?;
        Ok(calibration)
    }

    /// Checks every section, again where that was done before; reads the whole file.
    ///
    /// # Errors
    /// [`BundleError::Damaged`] for the first section whose checksum does not agree.
    pub fn verify(&self) -> Result<(), BundleError> {
        self.sections.iter().try_for_each(Section::verify)
    }

    /// The sections: kind (adapter, calibration, or composition for a stored merge), name, bytes.
    pub fn sections(&self) -> impl ExactSizeIterator<Item = (&'static str, &str, usize)> {
        self.sections
            .iter()
            .map(|s| (s.what, &*s.name, s.bytes.len()))
    }

    /// Checks a section and gives its checksum.
    fn verify_section(&self, what: &'static str, name: &str) -> Result<u128, BundleError> {
        let is_wanted = |s: &&Section| s.what == what && s.name == name;
        let section = self.sections.iter().find(is_wanted);
        // All that has a name has a section.
        let section = section.ok_or_else(|| BundleError::NoSuch {
            what,
            name: name.to_string(),
            known: String::new(),
        })?;
        if !section.state.is_whole.load(Ordering::Relaxed) {
            section.verify()?;
            section.state.is_whole.store(true, Ordering::Relaxed);
        }
        Ok(section.hash)
    }
}

impl Section {
    fn verify(&self) -> Result<(), BundleError> {
        if hash(&self.bytes) != self.hash {
            return Err(BundleError::Damaged {
                what: self.what,
                name: self.name.to_string(),
            });
        }
        Ok(())
    }
}

/// How a base that a bundle fits compares with the one it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseMatch {
    /// The very same, as far as its fingerprint tells.
    Same,
    /// Other bytes in its matrices: another quantization of the same model, or one trained further
    /// without touching norms and biases.
    OtherBytes,
}

impl Contents {
    /// The adapter `name`.
    ///
    /// # Errors
    /// [`BundleError::NoSuch`].
    pub fn adapter(&self, name: &str) -> Result<&Adapter, BundleError> {
        find("adapter", &self.adapters, |a| &a.name, name)
    }

    /// The calibration `name`.
    ///
    /// # Errors
    /// [`BundleError::NoSuch`].
    pub fn calibration(&self, name: &str) -> Result<&Calibration, BundleError> {
        find("calibration", &self.calibrations, |c| &c.name, name)
    }

    /// The composition `name`.
    ///
    /// # Errors
    /// [`BundleError::NoSuch`].
    pub fn composition(&self, name: &str) -> Result<&Composition, BundleError> {
        find("composition", &self.compositions, |c| &c.name, name)
    }

    /// Whether the bundle is for this base: structure and vectors of the fingerprint must agree,
    /// and every linear must be one of the base's.
    ///
    /// # Errors
    /// [`BundleError::OtherBase`], [`BundleError::BaseLinear`]; those of [`BaseFingerprint::of`].
    pub fn check_base(&self, base: &Gguf<'_>) -> Result<BaseMatch, BundleError> {
        let found = BaseFingerprint::of(base)?;
        let differs = if found.structure != self.base.structure {
            "architecture, number of layers or heads, or the tensors' shapes"
        } else if found.vectors != self.base.vectors {
            "the values of norms or biases"
        } else {
            self.check_linears(base)?;
            return Ok(match found.content == self.base.content {
                true => BaseMatch::Same,
                false => BaseMatch::OtherBytes,
            });
        };
        let wanted = self.base_name.as_deref().unwrap_or(&self.architecture);
        Err(BundleError::OtherBase {
            wanted: wanted.to_string(),
            differs,
        })
    }

    fn check_linears(&self, base: &Gguf<'_>) -> Result<(), BundleError> {
        let adapters = self.adapters.iter().map(|a| (&a.name, &a.factors));
        let merged = self.compositions.iter();
        let merged = merged.filter_map(|c| Some((&c.name, &c.merged.as_ref()?.factors)));
        for (name, factors) in adapters.chain(merged) {
            if let Some(f) = factors.iter().find(|f| !fits(f, base)) {
                return Err(base_linear(name, &f.linear));
            }
        }
        for calibration in &self.calibrations {
            for correction in &calibration.corrections {
                // The input and the output that the matrices are for, 0 for any.
                let (n_in, n_out) = match (calibration.kind, &*correction.matrices) {
                    (CalibrationKind::LowRank, [p1, p2]) => (p1.n_cols, p2.n_rows),
                    (CalibrationKind::OutputBias | CalibrationKind::WeightBias, [p]) => {
                        (0, p.n_cols)
                    }
                    _ => (0, 0),
                };
                let module = &*correction.module;
                let mut linears = base.tensors().iter().filter(|t| {
                    let linear = t.name.strip_suffix(".weight").unwrap_or("");
                    linear == module || layer_and_module(linear).is_some_and(|(_, m)| m == module)
                });
                let is_fit = |t: &crate::Tensor<'_>| {
                    let agree = |n: usize, found: &usize| n == 0 || n == *found;
                    matches!(t.shape(), [i, o] if agree(n_in, i) && agree(n_out, o))
                };
                let first = linears.next();
                if !first.is_some_and(is_fit) || !linears.all(is_fit) {
                    return Err(base_linear(&calibration.name, module));
                }
            }
        }
        Ok(())
    }
}

fn fits(f: &Factors, base: &Gguf<'_>) -> bool {
    let weight = base.tensor(&alloc::format!("{}.weight", f.linear));
    weight.is_some_and(|w| w.shape() == [f.n_in, f.n_out])
}

fn base_linear(name: &str, linear: &str) -> BundleError {
    BundleError::BaseLinear {
        name: name.to_string(),
        linear: linear.to_string(),
    }
}

fn find<'c, T>(
    what: &'static str,
    all: &'c [T],
    name_of: impl Fn(&T) -> &String,
    name: &str,
) -> Result<&'c T, BundleError> {
    let found = all.iter().find(|item| name_of(item) == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|item| &**name_of(item)).collect();
        BundleError::NoSuch {
            what,
            name: name.to_string(),
            known: known.join(", "),
        }
    })
}
