//! Model-checking programs for the protocols below the faces.
