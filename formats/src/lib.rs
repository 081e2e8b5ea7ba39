//! File formats.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]
extern crate alloc;
