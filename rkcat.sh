#!/usr/bin/env bash
# rkcat.sh: the state of a Rockchip board: NPU load per core, clocks and governors, temperatures,
# versions of driver and runtime.
#
#     sudo ./rkcat.sh      once; without sudo, not the load and often not the driver version
#     sudo ./rkcat.sh 1    again every second until Ctrl-C; a fraction is allowed if sleep allows it
#
# RKNN_SOC=NAME names the SoC if a container hides the device tree. For the tests: SYSROOT=FOLDER
# makes it read in that folder instead of /.
set -u
shopt -s nullglob
export LC_ALL=C # for the decimal point, and to read the runtime's library as bytes

sysroot=${SYSROOT:-}
devfreq=$sysroot/sys/class/devfreq
debugfs=$sysroot/sys/kernel/debug
usage='usage: ./rkcat.sh [SECONDS]'

die() {
    printf 'rkcat.sh: %s\n' "$1" >&2
    exit 2
}

# get FILE: put its first line into REPLY; false if there is none.
get() {
    REPLY=
    { read -r REPLY <"$1"; } 2>/dev/null
    [[ -n $REPLY ]]
}

# row NAME FOLDER PREFIX UNITS: print a part's clock and governor. PREFIX: how the files' names
# begin; UNITS: how many units of the clock are 1 MHz.
row() {
    local clock=-
    get "$2/${3}cur_freq" && [[ $REPLY != *[!0-9]* ]] && clock="$((REPLY / $4)) MHz"
    get "$2/${3}governor"
    printf '%-20s%-10s%s\n' "$1" "$clock" "${REPLY:--}"
}

# part NAME FOLDER ...: print a row for each folder. Without a folder, a board gets a line that says
# so; a PC gets none.
part() {
    local folder
    (($# > 1)) || [[ -z $board ]] || printf '%-20s%s\n' "$1" 'this kernel shows no clock for it'
    for folder in "${@:2}"; do
        row "$1" "$folder" '' 1000000
    done
}

clocks() {
    local folder cpus
    for folder in "$sysroot"/sys/devices/system/cpu/cpufreq/policy*; do
        get "$folder/related_cpus" || REPLY=${folder##*/}
        cpus=${REPLY%% *}
        [[ $REPLY != *' '* ]] || cpus+=-${REPLY##* }
        row "CPU $cpus" "$folder" scaling_ 1000
    done
    part NPU "$devfreq"/*.npu*
    part memory "$devfreq"/dmc*
    part GPU "$devfreq"/*.gpu*
}

temperatures() {
    local zone celsius
    for zone in "$sysroot"/sys/class/thermal/thermal_zone*; do
        get "$zone/temp"
        [[ $REPLY =~ ^-?[0-9]+$ ]] || continue # it is switched off
        printf -v celsius '%.1f' "${REPLY}e-3"
        get "$zone/type"
        printf '%-20s%s C\n' "${REPLY:-${zone##*/}}" "$celsius"
    done
}

# Mainline kernels have the open driver rocket instead of rknpu.
rocket() {
    local path
    for path in sys/module/rocket sys/bus/platform/drivers/rocket sys/class/accel/accel0 \
        dev/accel/accel0; do
        [[ ! -e $sysroot/$path ]] || return 0
    done
    return 1
}

# The NPU's load and the driver's version are in debugfs, readable by root only; some kernels have
# them in /proc too.
driver() {
    local version
    local load='not shown: no rknpu in /sys/kernel/debug (is debugfs mounted, the driver loaded?)'
    version=$load
    if [[ ! -e $sysroot/sys/module/rknpu && ! -e $sysroot/sys/bus/platform/drivers/RKNPU ]] &&
        rocket; then
        load='not shown: the rocket driver does not report it'
        version="rocket, the open one, which Rockchip's librknnrt.so cannot use: boot the board "
        version+="vendor's kernel, which has rknpu"
    elif [[ -d $debugfs && ! -x $debugfs ]]; then
        load='shown to root only: sudo ./rkcat.sh' version=$load
    fi
    get "$debugfs/rknpu/load" || get "$sysroot/proc/rknpu/load" || REPLY=$load
    REPLY=${REPLY#*load:} && REPLY=${REPLY#"${REPLY%%[! ]*}"}
    printf '%-20s%s\n' 'NPU load' "${REPLY%,}"
    get "$debugfs/rknpu/version" || get "$sysroot/proc/rknpu/version" ||
        get "$sysroot/sys/module/rknpu/version" || REPLY=$version
    printf '%-20s%s\n' 'NPU driver' "${REPLY#RKNPU driver: v}"
    printf '%-20s%s\n' 'RKNN runtime' \
        "${runtime:-not found: no librknnrt.so with a version in /usr/lib}"
}

everything() {
    printf '%s\n' "${board:-There is no Rockchip NPU in this machine.}"
    [[ -z $board ]] || driver
    clocks
    temperatures
}

(($# <= 1)) || die "$usage"
seconds=${1-}
case $seconds in
    --help | -h)
        printf '%s\n' "$usage" \
            'Shows NPU load, clocks, temperatures and versions, once or every SECONDS.' \
            'Only root sees the NPU load and, on many kernels, the driver version.'
        exit
        ;;
    *[!0-9.]* | *.*.*) die "'$seconds' is not a number of seconds above 0; $usage" ;;
    *[1-9]*) ;;
    *) (($# == 0)) || die "'$seconds' is not a number of seconds above 0; $usage" ;;
esac

board='' runtime=''
chips=${RKNN_SOC:-$({ tr '\0' '\n' <"$sysroot/proc/device-tree/compatible"; } 2>/dev/null |
    sed -n 's/^rockchip,//p')}
for chip in ${chips,,}; do
    chip=${chip%%-*} # rk3588-evb7-v11 is a board of Rockchip's
    case $chip in
        rk3588* | rk3582* | rk3576* | rk356* | rv1126b*) board=$chip; break ;; # as in rknnpool.py
    esac
done
if [[ -n $board ]]; then
    get "$sysroot/proc/device-tree/model" && board="$REPLY ($board)"
    runtime=$({ tr -cd '[:print:]\n' <"$sysroot/usr/lib/librknnrt.so"; } 2>/dev/null |
        sed -n 's/.*librknnrt version: \([0-9][^ ]*\).*/\1/p' | sed -n 1p)
fi

if [[ -z $seconds ]]; then
    everything
    exit
fi

in_place=''
[[ -t 1 && ${TERM:-dumb} != dumb ]] && in_place=yes
leave() {
    [[ -z ${!-} ]] || { kill "$!"; wait "$!"; } 2>/dev/null # the sleep in the background
    [[ -z $in_place ]] || printf '\033[?25h\033[?1049l' # show the cursor and the old screen
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
[[ -z $in_place ]] || printf '\033[?1049h\033[?25l'
while :; do
    shown=$(everything)
    if [[ -n $in_place ]]; then
        # Go home, then clear the rest of each line and of the screen: clearing first would flicker.
        printf '\033[H%s\033[K\033[J' "${shown//$'\n'/$'\033[K\r\n'}"
    else
        printf '%s\n\n' "$shown"
    fi
    sleep "$seconds" 2>/dev/null & # a trap waits for a sleep in the foreground
    wait "$!" || break
done
leave
trap - EXIT
die "this machine's sleep does not take $seconds seconds; $usage"
