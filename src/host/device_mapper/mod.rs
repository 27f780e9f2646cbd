//! Device mapper: the bytes of its ioctls ([`codec`]) and their executor ([`Control`]).

pub mod codec;
mod control;
#[cfg(test)]
mod codec_tests;

pub use control::Control;
