//! Device mapper: the bytes of its ioctls ([`codec`]), what a table says ([`table`]), their executor ([`Control`]), and its bell ([`Events`]).

pub mod codec;
#[cfg(test)]
mod codec_tests;
mod control;
mod events;
mod known;
mod listing;
pub mod table;

pub use control::Control;
pub use events::Events;
