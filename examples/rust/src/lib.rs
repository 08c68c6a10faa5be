//! Example programs; each is a binary of its own in `src/bin/`. Here is what they compute, which knows nothing of
//! processes or threads.

pub mod wordcount;
