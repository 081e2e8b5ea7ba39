# A Debian root for 64-bit Arm under emulation, for scripts that source this as root: `make_root PACKAGES` makes it,
# in $root, and `inside COMMAND ...` runs something in it. It needs mmdebstrap, arch-test and qemu-user-static.
# Where the kernel hands no programs to emulators, the script ends well, saying so.
work=$(mktemp -d)
root=$work/root
trap 'umount -q "$root/proc" || true; rm -rf --one-file-system "$work"' EXIT

make_root() { # packages, parted by commas
    # The kernel hands programs for Arm to the emulator, inside of the root, too (F).
    local formats=/proc/sys/fs/binfmt_misc
    if ! [ -e $formats/register ] && ! mount -t binfmt_misc binfmt_misc $formats; then
        echo "not tested: this kernel hands no programs to emulators"
        exit 0
    fi
    if [ ! -e $formats/qemu-aarch64 ]; then
        local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
        local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
        echo ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >$formats/register
    fi
    mmdebstrap -q --architectures=arm64 --variant=essential --include="apt,$1" bookworm "$root"
    mkdir -p "$root/proc" && mount -t proc proc "$root/proc"
}

inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
