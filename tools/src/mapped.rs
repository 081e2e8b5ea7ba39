//! What becomes of a program whose mapped file is cut short, or lies on a disk that fails: the system sends
//! a signal that ends it without a word. Here it ends with one.

/// Has the signal say what happened.
pub(crate) fn tell_of_lost_pages() {
    #[cfg(unix)]
    // SAFETY: the handler calls nothing but what a handler may.
    unsafe {
        let handler = on_bus_error as extern "C" fn(libc::c_int);
        libc::signal(libc::SIGBUS, handler as libc::sighandler_t);
    }
}

#[cfg(unix)]
extern "C" fn on_bus_error(_: libc::c_int) {
    const TEXT: &[u8] = b"error: a file was cut short, or could not be read, while it was in use: \
        --no-mmap reads the model into memory first\n";
    // SAFETY: both calls are async-signal-safe; the text lives forever.
    unsafe {
        let _ = libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
        libc::_exit(1);
    }
}
