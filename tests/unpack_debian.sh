#!/usr/bin/env bash
# Unpacks a Debian into a folder:
#
#     tests/unpack_debian.sh SUITE FOLDER PACKAGES [OPTION ... for mmdebstrap]
#
# PACKAGES are separated by commas; the essential packages of Debian are added. The packages are not
# configured: their scripts would take minutes under emulation and are not needed to run Python.
# Needs mmdebstrap, and root unless every user may create user namespaces.
set -euo pipefail
suite=$1 folder=$2 packages=$3
# shellcheck disable=SC2016  # $1 is expanded by mmdebstrap: the folder
merged='mkdir -p "$1"/usr/{bin,sbin,lib,lib64} && ln -s usr/{bin,sbin,lib,lib64} "$1"'

rm -rf "$folder.partial"
# A user namespace has one user only, so tar cannot keep the owners.
TAR_OPTIONS=--no-same-owner unshare --user --map-root-user mmdebstrap \
    --mode=root --variant=extract --skip=chroot/mount --setup-hook="bash -c '$merged' -- \"\$1\"" \
    --include='?essential' --include="$packages" "${@:4}" "$suite" "$folder.partial" \
    >"$folder.log" 2>&1 ||
    { echo "${0##*/}: mmdebstrap failed, see $folder.log." >&2; exit 1; }
mv "$folder.partial" "$folder"
