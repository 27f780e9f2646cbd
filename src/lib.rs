//! Fences a node's SAN storage instead of the node.
