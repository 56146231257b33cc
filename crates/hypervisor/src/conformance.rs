//! The claims every implementation of the port must fulfil, as functions that tests call.
