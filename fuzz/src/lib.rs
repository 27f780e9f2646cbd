//! The product's decoders with what must hold for any bytes, for libFuzzer.
//!
//! The rooms that decode are compiled here from the product's own files, not through its library: that would build the Kubernetes client and
//! its hundred crates a second time, with coverage, for code that none of it takes part in. So a round of fuzzing costs seconds to build and
//! can be part of every `make test`.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`checks`] | for each target: what must hold of what was decoded |
//! | the others | the product |

#![allow(dead_code, reason = "only what decodes is used of the product's rooms")]

#[path = "../../src/fence/mod.rs"]
pub mod fence;
#[path = "../../src/host/mod.rs"]
pub mod host;

pub mod agent;
pub mod checks;
