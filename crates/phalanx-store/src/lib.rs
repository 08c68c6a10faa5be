//! Maps and lists that the processes of a tree share.
//!
//! A [`Store`] is a sequence of records, each a key and a value of bytes, with or without an index by the hash of the key. What
//! the bytes mean is the caller's business: which keys are equal, what a list's place is. A value may carry handles; the
//! objects they name live as long as it does.
//!
//! Everything happens under one robust lock ([`Store::lock`]). A process that dies inside leaves the state before its
//! operation or the one after it, never a third.
#![warn(missing_docs)]

mod store;
mod table;

pub use store::{Item, Open, Store, StoreError, StoreState, Value};
