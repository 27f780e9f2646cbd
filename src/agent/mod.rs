//! The node agent: observe, decide, act, report.
