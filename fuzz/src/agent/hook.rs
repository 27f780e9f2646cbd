//! Of the kill hook, what reads the socket's lines and lvm.conf.

#[path = "../../../src/agent/hook/conf.rs"]
pub mod conf;
#[path = "../../../src/agent/hook/protocol.rs"]
pub mod protocol;
