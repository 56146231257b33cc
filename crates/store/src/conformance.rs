//! What every implementation of [`Store`](crate::Store) must do, as tests that run against any of them.
