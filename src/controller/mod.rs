//! The controller: one folder a reconciled kind.
