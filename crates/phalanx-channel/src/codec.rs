//! Typed values as bytes: serde with postcard. The engine below knows bytes only.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value that could not be written as bytes or read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} a value of type {type_name}: {reason}")]
pub struct CodecError {
    /// "serialize" or "deserialize".
    pub verb: &'static str,
    /// The Rust type.
    pub type_name: String,
    /// What the format said.
    pub reason: String,
}

struct Sink<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Sink<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends `value` to `out`.
///
/// # Errors
///
/// [`CodecError`] when the type's `Serialize` refuses; `out` is as it was then.
pub fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    write(value, out).map_err(|error| *error)
}

/// As [`encode`]. The error lies elsewhere, so that what is returned fits registers.
#[inline]
pub(crate) fn write<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), Box<CodecError>> {
    let before = out.len();
    match postcard::serialize_with_flavor(value, Sink(out)) {
        Ok(()) => Ok(()),
        Err(error) => {
            out.truncate(before);
            Err(failed::<T>("serialize", error))
        }
    }
}

/// Reads a value back.
///
/// # Errors
///
/// [`CodecError`] when the bytes are not a `T`, or are more than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    read(bytes).map_err(|error| *error)
}

/// As [`decode`]. The error lies elsewhere, as in [`write`].
#[inline]
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<CodecError>> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(left_over::<T>(rest.len())),
        Err(error) => Err(failed::<T>("deserialize", error)),
    }
}

#[cold]
fn failed<T: ?Sized>(verb: &'static str, error: postcard::Error) -> Box<CodecError> {
    Box::new(CodecError {
        verb,
        type_name: std::any::type_name::<T>().to_owned(),
        // The format drops the text of an error; a handle's is kept aside.
        reason: phalanx_sync::handle::take_last_error().unwrap_or_else(|| error.to_string()),
    })
}

#[cold]
fn left_over<T>(bytes: usize) -> Box<CodecError> {
    Box::new(CodecError {
        verb: "deserialize",
        type_name: std::any::type_name::<T>().to_owned(),
        reason: format!("{bytes} bytes are left over"),
    })
}
