//! Device mapper: the bytes of its ioctls ([`codec`]) and their executor ([`Control`]).

pub mod codec;
#[cfg(test)]
mod codec_tests;
mod control;

pub use control::Control;
