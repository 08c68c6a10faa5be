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

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

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
    let before = out.len();
    postcard::serialize_with_flavor(value, Sink(out)).map_err(|error| {
        out.truncate(before);
        CodecError {
            verb: "serialize",
            type_name: std::any::type_name::<T>().to_owned(),
            // The format drops the text of an error; a handle's is kept aside.
            reason: phalanx_sync::handle::take_last_error().unwrap_or_else(|| error.to_string()),
        }
    })
}

/// Reads a value back.
///
/// # Errors
///
/// [`CodecError`] when the bytes are not a `T`, or are more than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let failed = |reason: String| CodecError {
        verb: "deserialize",
        type_name: std::any::type_name::<T>().to_owned(),
        reason,
    };
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(failed(format!("{} bytes are left over", rest.len()))),
        Err(error) => Err(failed(
            phalanx_sync::handle::take_last_error().unwrap_or_else(|| error.to_string()),
        )),
    }
}
