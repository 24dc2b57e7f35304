#!/usr/bin/env bash
# boot.sh BOX USERLAND REPOSITORY COMMAND ... : does the work of kernel and boot loader. board.sh
# starts it as root and as the first process of new namespaces. It sets up /proc, /dev and /run,
# starts the process that computes for the emulated NPU, unless BOARD_SOCKET names the socket of
# one, and runs COMMAND.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
box=$1 root=$2 repo=$3
shift 3
tmp=$(dirname "$(mktemp -u)") # the temporary folder, as TMPDIR names it
cwd=$PWD

# Lets the kernel start arm64 programs with qemu, in this namespace only.
register_qemu() {
    local table=$root/run/binfmt
    mkdir "$table"
    # Before Linux 6.7 all namespaces share one table.
    if ! mount -t binfmt_misc binfmt_misc "$table" 2>/dev/null; then
        [[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]] && return
        echo 'board.sh: this kernel starts no arm64 programs:' \
            'install qemu-user-static with binfmt-support.' >&2
        exit 2
    fi
    # The ELF header of a 64-bit, little-endian executable (or shared object) for machine 0xb7,
    # AArch64.
    local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" \
        >"$table/register"
}

mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/proc"
mount -t proc proc "$root/run/proc" 2>/dev/null || mount --rbind /proc "$root/run/proc"

# The kernel's /proc cannot get new entries, so the board's /proc is a folder of links to it, plus
# the device tree.
mount -t tmpfs tmpfs "$root/proc"
for entry in "$root"/run/proc/[!0-9]*; do
    ln -s "/run/proc/${entry##*/}" "$root/proc/"
done
rm -f "$root/proc/device-tree"
mkdir "$root/proc/device-tree"
# shellcheck disable=SC2059  # \0 is a NUL character
printf "$BOARD_COMPATIBLE" >"$root/proc/device-tree/compatible"

mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/dri"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
if [[ $BOARD_NPU == yes ]]; then # the first card is that of the display
    : >"$root/dev/dri/renderD129"
    : >"$root/dev/dri/card1"
fi

if [[ $BOARD_RUNTIME == yes ]]; then
    : >"$root/run/librknnrt.so" # the target of the link /usr/lib/librknnrt.so
    mount --bind "$box/$BOARD_LIBRARY" "$root/run/librknnrt.so"
fi
preload=()
if [[ -n $BOARD_DRIVER ]]; then # replaces the kernel's driver, in every program
    : >"$root/run/driver.so"
    mount --bind "$box/$BOARD_DRIVER" "$root/run/driver.so"
    preload=(LD_PRELOAD=/run/driver.so)
fi

if [[ $BOARD_WHEEL == none ]]; then
    mount -t tmpfs tmpfs "$root"/usr/local/lib/python3*/dist-packages/rknnlite
elif [[ -n $BOARD_WHEEL ]]; then
    mount --bind "$box/wheel-$BOARD_WHEEL/rknnlite" \
        "$root"/usr/local/lib/python3*/dist-packages/rknnlite
fi

if [[ -n $BOARD_TOOLKIT ]]; then # ONNX Runtime for arm64 does not start without a list of CPUs
    mount -t tmpfs tmpfs "$root/sys"
    mkdir -p "$root/sys/devices/system/cpu"
    mount --rbind /sys/devices/system/cpu "$root/sys/devices/system/cpu"
fi

for shared in "$tmp" "$repo"; do
    mkdir -p "$root$shared"
    mount --rbind "$shared" "$root$shared"
done
[[ -d $root$cwd ]] || cwd=/

if [[ -n $BOARD_SOCKET ]]; then
    : >"$root/run/npu.sock"
    mount --bind "$BOARD_SOCKET" "$root/run/npu.sock"
else # relative, because the path of a socket may have at most 107 bytes
    exec 3< <(cd "$root/run" && exec "$BOARD_PYTHON" "$here/npu.py" npu.sock "$repo/models" 3>&-)
    read -r _ <&3 || exit 2
fi

register_qemu
mkdir "$root/run/tmp" # separate for each board
environment=(PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}"
    TMPDIR=/run/tmp QEMU_CPU="$BOARD_CPU" PYTHONPATH="$BOARD_TOOLKIT")
for name in "${!BOARD_@}" "${!RKNN@}"; do # settings of device.c and of the project
    environment+=("$name=${!name}")
done
status=0
env -i "${environment[@]}" chroot "$root" /usr/bin/env -C "$cwd" "${preload[@]}" "$@" || status=$?
exit "$status"
