//! Lets a command believe that its kernel is older than it is: the TUN offloads that it lacks are refused by a seccomp
//! filter, in the words of such a kernel.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

/// What the kernel lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// USO, which came with Linux 6.2.
    UdpOffloads,
    /// Every offload of a TUN device.
    AllOffloads,
}

/// `TUNSETOFFLOAD` (linux/if_tun.h): its argument has a bit for each offload.
const SET_OFFLOAD: u32 = 0x4004_54d0;
/// `TUN_F_USO4` and `TUN_F_USO6`.
const UDP_BITS: u32 = 0x20 | 0x40;

/// Has what `command` will run lack something of its kernel, and all that it starts.
pub fn pretend_old_kernel(command: &mut Command, lacking: Lacking) {
    let filter = filter(match lacking {
        Lacking::UdpOffloads => UDP_BITS,
        Lacking::AllOffloads => u32::MAX,
    });
    // SAFETY: between fork and exec it only makes a system call; the filter was allocated before.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || install(&filter));
    }
}

/// Returns a filter (linux/filter.h) that answers `TUNSETOFFLOAD` with any of `bits` by `EINVAL`.
fn filter(bits: u32) -> [libc::sock_filter; 8] {
    // In `seccomp_data`: the call's number, and the lower half of its second and third argument.
    const NUMBER: u32 = 0;
    let low = if cfg!(target_endian = "big") { 4 } else { 0 };
    let (request, argument) = (24 + low, 32 + low);
    let step =
        |code: u32, yes: u8, no: u8, value: u32| libc::sock_filter { code: code as u16, jt: yes, jf: no, k: value };
    let load = |at: u32| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    let equal = |value: u32, no: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, no, value);
    let answer = |value: u32| step(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    [
        load(NUMBER),
        equal(libc::SYS_ioctl as u32, 5),
        load(request),
        equal(SET_OFFLOAD, 3),
        load(argument),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, bits),
        answer(libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ]
}

fn install(filter: &[libc::sock_filter; 8]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which lives until the call returns, and does not write to it.
    #[allow(unsafe_code)]
    let outcome = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
