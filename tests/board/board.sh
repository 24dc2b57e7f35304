#!/usr/bin/env bash
# Runs a command on an emulated Rockchip board. Builds the board if it is missing:
#
#     tests/board/board.sh [--soc NAME] [--no-npu] [--no-runtime] python3 main.py models/demo.mp4
#
# The board is an arm64 Debian under qemu-user with the vendor's wheel from pip. Below the wheel is
# our library librknnrt.c, or the vendor's library with our kernel driver. All files are in
# tests/board/box/. README.md in this folder says what is real.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
box=$here/box
debs=python3,libstdc++6
# Headless: the packages for windows would double the size of the box.
wheels=(opencv-python-headless numpy pyyaml tqdm)
# The wheel that contains the vendor's librknnrt.so, and the sha256 of that file.
vendors=rknpu==1.5.2
vendorsSum=1b278f220361ffda3a91ba69affb650c2dd8acaa295b6883da8d6ea966fb8e32

usage() {
    cat <<'END'
usage: tests/board/board.sh [OPTION ...] [COMMAND ...]

Runs COMMAND on the emulated board, in the present directory; without COMMAND, only builds it.
Files of the repository and of the temporary folder have the same paths there as here.

  --soc NAME     rk3588 (the default) or rk3582 (3 NPU cores), rk3576 (2), rk3566, rk3568, rk3562
                 or rv1126b (1), or a variant of these (rk3588f, rk3588s2, rk3588j)
  --library KIND emulated (the default): our library over an emulated NPU, which reports wrong use
                 and fails on request; real: the vendor's librknnrt.so 1.5.2 over an emulated
                 kernel driver, which reports an rk3588's NPU, whatever --soc is
  --wheel NUMBER version of rknn-toolkit-lite2 (default: the newest; most boards have 2.3.2);
                 none: without it
  --python 3.13  Debian 13, for whose Python there is no rknn-toolkit-lite2 (default: Debian 12
                 with Python 3.11)
  --toolkit      with rknn-toolkit2, which converts models, instead of the other packages
                 (models/requirements-arm64.txt, 700 MB)
  --no-npu       a board without /dev/dri/renderD129 and card1, the NPU's device
  --no-runtime   a board without /usr/lib/librknnrt.so, the vendor's library
  --rebuild      throws the board away first

Environment: BOARD_PYTHON is the Python of this machine that has onnxruntime (default: .venv's,
else python3). BOARD_SOCKET is the socket of a running npu.py, for several boards.
BOARD_COMPATIBLE is the text of /proc/device-tree/compatible, NULs as \0, in place of --soc's.
BOARD_REPORT, BOARD_RUN_MS and the faults (BOARD_FAIL_RUN, BOARD_HANG_CORE, ...) are described at
the head of device.c.
END
}

die() {
    printf 'board.sh: %s\n' "$*" >&2
    exit 2
}

# In a user namespace every user may unpack, mount and chroot, and mounts end with it.
namespace() {
    unshare --user --map-root-user "$@"
}

# pip_for_the_board ARGUMENT ... : installs wheels for the board's Python with this machine's pip.
pip_for_the_board() {
    "$python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts \
        --root-user-action=ignore --only-binary=:all: --implementation cp \
        --python-version "$pythonVersion" --platform manylinux2014_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux_2_28_aarch64 \
        "$@" >&2 || die "pip could not install ${*: -1} for aarch64."
}

build_userland() {
    local staging=$root.staging
    rm -rf "$staging"
    echo "board.sh: fetching Debian $suite for arm64" >&2
    "$here/../unpack_debian.sh" "$suite" "$staging" "$debs" --architectures=arm64 || exit 2
    cp "$staging/usr/share/base-passwd/passwd.master" "$staging/etc/passwd"
    cp "$staging/usr/share/base-passwd/group.master" "$staging/etc/group"
    ln -s /run/librknnrt.so "$staging/usr/lib/librknnrt.so"

    echo "board.sh: fetching ${wheels[*]} for aarch64" >&2
    pip_for_the_board --target "$staging/usr/local/lib/python$pythonVersion/dist-packages" \
        "${wheels[@]}"
    rm -rf "$root"
    mv "$staging" "$root"
    recipe >"$root.recipe"
}

recipe() {
    echo "$suite $debs ${wheels[*]}"
}

# compile FILE SOURCE ... : builds a library for the board if a source is newer.
compile() {
    local file=$box/$1 source
    shift
    for source in "$here"/*.h "$@"; do
        if [[ $source -nt $file ]]; then
            # nodelete: the wheel unloads the library with its last context, and the report would
            # start again with the next one.
            aarch64-linux-gnu-gcc -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared \
                -fvisibility=hidden -pthread -Wl,-z,nodelete \
                -o "$file.partial" "$@" -ldl || die "${file##*/} does not compile."
            mv "$file.partial" "$file"
            return
        fi
    done
}

fetch_wheel() {
    rm -rf "$box/wheel.partial"
    echo "board.sh: fetching rknn-toolkit-lite2 $wheel for aarch64" >&2
    pip_for_the_board --no-deps --target "$box/wheel.partial" "rknn-toolkit-lite2==$wheel"
    mv "$box/wheel.partial" "$box/wheel-$wheel"
}

# An environment of its own, as docs/models.md installs it.
fetch_toolkit() {
    rm -rf "$box/toolkit.partial" "$box/toolkit"
    echo "board.sh: fetching rknn-toolkit2 for aarch64" >&2
    pip_for_the_board --no-deps --target "$box/toolkit.partial" -r "$requirements"
    cp "$requirements" "$box/toolkit.partial"
    mv "$box/toolkit.partial" "$box/toolkit"
}

fetch_vendors_library() {
    local staging=$box/vendors.partial library
    rm -rf "$staging"
    echo "board.sh: fetching $vendors for aarch64" >&2
    pip_for_the_board --no-deps --target "$staging" "$vendors"
    library=$(find "$staging" -name 'librknnrt*.so')
    [[ $(sha256sum <"$library") == "$vendorsSum  -" ]] ||
        die "the librknnrt.so of $vendors is not the one that is known."
    mv "$library" "$box/librknnrt-vendors.so"
    rm -rf "$staging"
}

soc=rk3588 library=emulated wheel='' pythonVersion=3.11 npu=yes runtime=yes toolkit=''
requirements=$repo/models/requirements-arm64.txt
while [[ ${1-} == -* ]]; do
    case $1 in
        --soc)
            soc=${2-}
            (($# < 2)) || shift
            ;;
        --library)
            library=${2-}
            (($# < 2)) || shift
            ;;
        --wheel)
            wheel=${2-}
            (($# < 2)) || shift
            ;;
        --python)
            pythonVersion=${2-}
            (($# < 2)) || shift
            ;;
        --toolkit) toolkit=$box/toolkit ;;
        --no-npu) npu=no ;;
        --no-runtime) runtime=no ;;
        --rebuild) rm -rf "$box" ;;
        -h | --help) usage && exit ;;
        *) die "there is no option $1; --help lists them." ;;
    esac
    shift
done
# The compatible strings of a real board for each SoC, most specific first, and the instruction sets
# of its fast cores.
cpu=cortex-a76
case $soc in
    rk3588) compatible='xunlong,orangepi-5\0rockchip,rk3588s\0rockchip,rk3588\0' ;;
    rk3582) compatible='radxa,rock-5c\0rockchip,rk3582\0rockchip,rk3588s\0rockchip,rk3588\0' ;;
    rk3576) compatible='radxa,rock-4d\0rockchip,rk3576\0' cpu=cortex-a72 ;;
    rk3566) compatible='radxa,zero3\0rockchip,rk3566\0' ;;
    rk3568) compatible='radxa,rock-3a\0rockchip,rk3568\0' ;;
    rk3562) compatible='rockchip,rk3562-evb1-lp4x-v10\0rockchip,rk3562\0' cpu=cortex-a53 ;;
    rk3588?* | rk3576?* | rk356?* | rv1126b*) compatible="vendor,board\\0rockchip,$soc\\0" ;;
    *)
        die "--soc is rk3588, rk3582, rk3576, rk3566, rk3568, rk3562, rv1126b" \
            "or a variant (rk3588f), not '$soc'."
        ;;
esac

case $library in
    emulated) libraryFile=librknnrt.so driver= ;;
    real) libraryFile=librknnrt-vendors.so driver=driver.so ;;
    *) die "--library is emulated or real, not '$library'." ;;
esac

case $pythonVersion in # Debian's version; the wheels must match it
    3.11) suite=bookworm root=$box/root wheels=(rknn-toolkit-lite2 "${wheels[@]}") ;;
    3.13)
        suite=trixie root=$box/root-3.13
        [[ -z $wheel || $wheel == none ]] ||
            die "there is no rknn-toolkit-lite2 for Python 3.13: leave out --wheel."
        wheel=''
        ;;
    *) die "--python is 3.11 or 3.13, not '$pythonVersion'." ;;
esac

for tool in mmdebstrap qemu-aarch64-static aarch64-linux-gnu-gcc unshare flock; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null ||
        die "$tool is missing: apt-get install mmdebstrap qemu-user-static" \
            "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
done
namespace true 2>/dev/null || die "user namespaces are off for this user: run it as root."
python=${BOARD_PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    [[ -x $repo/.venv/bin/python ]] && python=$repo/.venv/bin/python
fi

mkdir -p "$box"
(
    flock 9
    export PATH=$PATH:/usr/sbin
    [[ -f $root.recipe && $(<"$root.recipe") == "$(recipe)" ]] || build_userland
    compile librknnrt.so "$here"/{librknnrt,device,link}.c
    [[ -z $wheel || $wheel == none || -d $box/wheel-$wheel ]] || fetch_wheel
    [[ -z $toolkit ]] || cmp -s "$requirements" "$toolkit/${requirements##*/}" || fetch_toolkit
    if [[ $library == real ]]; then
        compile driver.so "$here"/{driver,submit,device,link}.c
        [[ -f $box/librknnrt-vendors.so ]] || fetch_vendors_library
    fi
) 9>"$box/lock"
(($#)) || exit 0

export BOARD_COMPATIBLE=${BOARD_COMPATIBLE:-$compatible} BOARD_CPU=$cpu BOARD_NPU=$npu
export BOARD_RUNTIME=$runtime BOARD_PYTHON=$python BOARD_SOCKET=${BOARD_SOCKET-}
export BOARD_LIBRARY=$libraryFile BOARD_DRIVER=$driver BOARD_WHEEL=$wheel BOARD_TOOLKIT=$toolkit
# The process namespace ends with the command, and all its processes end with it.
exec unshare --user --map-root-user --mount --pid --fork --kill-child \
    bash "$here/boot.sh" "$box" "$root" "$repo" "$@"
