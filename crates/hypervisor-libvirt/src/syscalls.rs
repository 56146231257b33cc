//! The system calls that a program in the confinement may not make: what reads foreign bytes and writes a file needs none
//! of them, and many a hole of the kernel was reached through one.
//!
//! Refused ones fail with `EPERM`. `clone3` fails with `ENOSYS`, because its flags lie in memory, where a filter cannot
//! look: the C library takes `clone` then, whose flags are looked at.

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;

/// Namespaces, mounts, other processes, sockets, keys, and interfaces of the kernel for programs that trust what they run.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_socket,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_personality,
    libc::SYS_acct,
    libc::SYS_quotactl,
];

/// Flags of `clone` that make a namespace.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The filters, as the kernel reads them: arrays of `struct sock_filter`.
///
/// # Errors
/// A sentence, where this machine's architecture is unknown.
pub(crate) fn filters() -> Result<[Vec<u8>; 2], String> {
    let made = || {
        let mut refused: BTreeMap<_, _> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
        let makes_namespace = NAMESPACES.map(|flag| {
            let flag = u64::from(flag.cast_unsigned());
            let has_flag = SeccompCmpOp::MaskedEq(flag);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, has_flag, flag)?;
            SeccompRule::new(vec![condition])
        });
        let makes_namespace: Result<_, _> = makes_namespace.into_iter().collect();
        refused.insert(libc::SYS_clone, makes_namespace?);
        let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        Ok::<_, seccompiler::BackendError>([
            compiled(refused, libc::EPERM)?,
            compiled(unknown, libc::ENOSYS)?,
        ])
    };
    made().map_err(|error| format!("no filter of system calls: {error}"))
}

fn compiled(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    error: libc::c_int,
) -> Result<Vec<u8>, seccompiler::BackendError> {
    let refuse = SeccompAction::Errno(error.cast_unsigned());
    let machine = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, machine)?;
    let program: BpfProgram = filter.try_into()?;
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    Ok(bytes)
}
