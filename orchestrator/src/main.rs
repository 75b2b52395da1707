//! `ctrlable`.
fn main() {}
