//! From YAML text to [`crate::manifest::Manifest`] and [`crate::site::Site`], with the line of every mistake.
