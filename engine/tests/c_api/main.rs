//! The C interface, called as C would call it: what works, and every wrong use that it can tell.

// All pointers are to live values or null, and every wrong use here is one that the interface tells.
#![allow(clippy::undocumented_unsafe_blocks)]

mod calls;
mod chat;
mod generate;
mod refuse;
mod session;
