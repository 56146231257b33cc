//! What the guest of a running domain says of itself, through an agent inside it. Its words are foreign: an implementation
//! bounds how long it waits and how much it takes; the reader decides what of it is shown.

/// How a guest is asked to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Through the agent in the guest.
    GuestAgent,
    /// With the power button.
    Acpi,
}

/// The answer of an agent in a guest, as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestTold {
    pub host_name: Option<String>,
    pub os: Option<String>,
    pub addresses: Vec<NicAddresses>,
}

/// The addresses of one card, as they were told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicAddresses {
    pub mac: String,
    pub addresses: Vec<String>,
}
