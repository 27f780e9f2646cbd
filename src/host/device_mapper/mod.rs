//! Device mapper: the bytes of its ioctls ([`codec`]), their executor ([`Control`]), and its bell ([`Events`]).

pub mod codec;
#[cfg(test)]
mod codec_tests;
mod control;
mod events;

pub use control::Control;
pub use events::Events;
