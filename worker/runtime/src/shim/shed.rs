//! Gives back what making a container took: a supervisor then waits for as long as its container lives.
//!
//! Decides nothing; called once, between making and waiting, while the process has one thread.

use std::fs;

/// What the calls from here on may still need of the stack, in bytes.
const KEPT: usize = 16 << 10;
/// A page, in bytes.
const PAGE: usize = 4096;

/// Frees unused heap and the stack below this call. What can't be freed stays: nothing depends on it.
pub(super) fn shed() {
    // SAFETY: no argument is a pointer, and there is no other thread.
    unsafe { libc::malloc_trim(0) };
    let here = 0u8;
    let end = ((&raw const here as usize) & !(PAGE - 1)).saturating_sub(KEPT);
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(start) = stack_start(&maps).filter(|start| *start < end) else { return };
    // SAFETY: from the start of this thread's stack to well below the frame in use: memory that holds nothing that is
    // alive, and reads as zeros when it is used again.
    unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
}

/// Lowest address of the main thread's stack.
fn stack_start(maps: &str) -> Option<usize> {
    let line = maps.lines().find(|line| line.ends_with("[stack]"))?;
    usize::from_str_radix(line.split('-').next()?, 16).ok().filter(|start| start % PAGE == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_found_by_its_name() {
        let maps = "555578e37000-555578e4f000 rw-p 00000000 00:00 0                          [heap]\n\
                    7ffc49f7c000-7ffc49f9d000 rw-p 00000000 00:00 0                          [stack]\n";
        assert_eq!(stack_start(maps), Some(0x7ffc_49f7_c000));
        assert_eq!(stack_start("nothing"), None);
    }
}
