//! The certificate tool as a separate program, for tests. In an installation the agent's program does this under that
//! name.

fn main() -> std::process::ExitCode {
    fleetward_hypervisor_libvirt::ek_certificate_tool_main()
}
