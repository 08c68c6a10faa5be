//! External commands.
