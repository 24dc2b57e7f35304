#!/usr/bin/env bash
# Runs a command on an emulated board with the open driver. Builds the board if it is missing (a
# minute, 450 MB):
#
#     tests/teflon/box.sh [--device] [COMMAND ...]
#
# The board is an arm64 Debian 13 under qemu-user with Python 3.13, LiteRT and Mesa's real
# libteflon.so from trixie-backports. It has no NPU. With --device, device.c replaces the kernel's
# rocket driver: it accepts Mesa's submissions and computes nothing. All files are in
# tests/teflon/box/.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
box=$here/box root=$box/root
wheels=(ai-edge-litert numpy opencv-python-headless tqdm)
tmp=$(dirname "$(mktemp -u)") # the temporary folder, as TMPDIR names it

die() {
    printf 'box.sh: %s\n' "$*" >&2
    exit 2
}

# In a user namespace every user may unpack, mount and chroot, and mounts end with it.
namespace() {
    unshare --user --map-root-user "$@"
}

# Mesa's arm64 package from the backports. apt uses a state folder of its own.
fetch_mesa() {
    local apt=$box/apt mirror
    # shellcheck disable=SC2016  # apt's own variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        grep -m 1 '/debian/*$') ||
        die "apt knows no mirror of Debian."
    mkdir -p "$apt"/{lists/partial,archives/partial}
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] $mirror trixie-backports main" >"$apt/sources.list"
    : >"$apt/status"
    local options=(-qq -o APT::Sandbox::User=root -o APT::Architecture=arm64
        -o APT::Architectures=arm64 -o "Dir::State::lists=$apt/lists"
        -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt"
        -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=-)
    (
        cd "$apt" &&
            apt-get "${options[@]}" update &&
            apt-get "${options[@]}" download mesa-teflon-delegate
    )
}

build() {
    local staging=$box/root.staging deb python=${BOARD_PYTHON:-python3}
    rm -rf "$staging" "$box/apt"
    echo "box.sh: fetching Debian trixie and Mesa for arm64" >&2
    "$here/../unpack_debian.sh" trixie "$staging" python3,libstdc++6,libdrm2,libexpat1 \
        --architectures=arm64 || exit 2
    fetch_mesa >&2 || die "Mesa's package could not be fetched."
    for deb in "$box"/apt/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" |
            namespace tar -x --no-same-owner --keep-directory-symlink -C "$staging"
    done
    rm -r "$box/apt"
    cp "$staging/usr/share/base-passwd/passwd.master" "$staging/etc/passwd"
    [[ -x $repo/.venv/bin/python ]] && python=$repo/.venv/bin/python
    echo "box.sh: fetching ${wheels[*]} for aarch64" >&2
    "$python" -m pip install -qq --disable-pip-version-check --root-user-action=ignore \
        --no-warn-conflicts --only-binary=:all: --implementation cp --python-version 3.13 \
        --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
        --target "$staging/usr/local/lib/python3.13/dist-packages" "${wheels[@]}" >&2 ||
        die "pip could not install ${wheels[*]} for aarch64."
    aarch64-linux-gnu-gcc -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -shared \
        -o "$staging/usr/lib/rocket_device.so" "$here/device.c" -ldl ||
        die "device.c does not compile."
    # LiteRT reads this to choose its fast kernels. The host's /sys describes another CPU.
    mkdir -p "$staging/sys/devices/system/cpu"
    echo 0-1 | tee "$staging/sys/devices/system/cpu/"{possible,present} >/dev/null
    rm -rf "$root"
    mv "$staging" "$root"
}

preload=
if [[ ${1-} == --device ]]; then
    preload=LD_PRELOAD=/usr/lib/rocket_device.so
    shift
fi
for tool in mmdebstrap dpkg-deb qemu-aarch64-static aarch64-linux-gnu-gcc unshare; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null ||
        die "$tool is missing: apt-get install mmdebstrap qemu-user-static" \
            "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
done
namespace true 2>/dev/null || die "user namespaces are off for this user: run it as root."
mkdir -p "$box"
[[ -d $root ]] || PATH=$PATH:/usr/sbin build
(($#)) || exit 0

# The ELF header of a 64-bit, little-endian executable (or shared object) for machine 0xb7, AArch64.
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
ulimit -c 0
BINFMT=":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F"
export root repo tmp preload BINFMT
# shellcheck disable=SC2016  # expanded by the shell in the namespace
exec unshare --user --map-root-user --mount --pid --fork --kill-child bash -euc '
    mount -t tmpfs tmpfs "$root/run"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/dev"
    for device in null zero full random urandom; do
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/shm" "$root/run/binfmt"
    for shared in "$tmp" "$repo"; do
        mkdir -p "$root$shared"
        mount --rbind "$shared" "$root$shared"
    done
    mount -t binfmt_misc binfmt_misc "$root/run/binfmt"
    printf %s "$BINFMT" >"$root/run/binfmt/register"
    # no exec: a crash does not end the first process of a namespace
    env -i PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 \
        PYTHONDONTWRITEBYTECODE=1 QEMU_CPU=cortex-a76 TEFLON_DEBUG="${TEFLON_DEBUG-}" \
        chroot "$root" /usr/bin/env -C "$repo" ${preload:+"$preload"} "$@" ||
        exit $?' bash "$@"
