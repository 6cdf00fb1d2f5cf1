//! Nothing to link: the tests of this package read the source of the others and hold
//! the lines of ARCHITECTURE.md that are marked **Invariant**.
#![forbid(unsafe_code)]
