#!/usr/bin/env bash
# performance.sh: pins the clocks of CPU, NPU, memory and GPU to their highest step, so that frame
# rates are the board's best and can be compared. Prints a table: the clocks before, what was
# requested, and the clocks now.
#
#     sudo ./performance.sh              pin, and save the previous state in /run/rknnpool-clocks,
#                                        which a reboot empties
#     sudo ./performance.sh --restore    restore the previous governors and limits
#     ./performance.sh --status          print the table, change nothing
#
# For the tests: SYSROOT=FOLDER makes it read and write in that folder instead of /.
set -u
shopt -s nullglob
umask 022 # --status is for everyone, whatever root's umask says
exec 3>&2 # for traps, which may run while stderr is redirected

sysroot=${SYSROOT:-}
cpufreq=$sysroot/sys/devices/system/cpu/cpufreq
devfreq=$sysroot/sys/class/devfreq
# One line per part: folder governor limit step clock; - stands for a missing value.
state=$sysroot/run/rknnpool-clocks
declare -A kept=() # the same: folder -> the rest of its line
usage='usage: sudo ./performance.sh [--restore | --status]'

die() {
    printf 'performance.sh: %s\n' "$1" >&2
    exit 2
}

# get FILE: put its first line into REPLY; false if there is none.
get() {
    REPLY=
    { read -r REPLY <"$1"; } 2>/dev/null
    [[ -n $REPLY ]]
}

# put VALUE FILE: false if there is no such file or the kernel refuses the value.
put() {
    [[ -e $2 ]] && { printf '%s\n' "$1" >"$2"; } 2>/dev/null
}

# Root may write; with SYSROOT, everyone who can write to some governor.
may_write() {
    local file denied=0
    [[ -n $sysroot ]] || { (($(id -u) == 0)); return; }
    for file in "$cpufreq"/policy*/scaling_governor "$devfreq"/*/governor; do
        [[ -w $file ]] && return
        denied=1
    done
    return "$denied"
}

# look_at FOLDER: set the part's name and files, what to request ($want at the step $top), and its
# saved state ($was_...).
look_at() {
    local hz prefix=$1/
    note='' key=${1#"$sysroot"} want='' top=0
    step=$1/userspace/set_freq per_mhz=1000000 # exists only with governor userspace
    case ${1##*/} in
        policy*)
            prefix=$1/scaling_ step=$1/scaling_setspeed per_mhz=1000 # cpufreq counts in kHz
            get "$1/related_cpus" || REPLY=${1##*/}
            name="CPU $REPLY"
            [[ $REPLY != *' '* ]] || name="CPU ${REPLY%% *}-${REPLY##* }"
            ;;
        *.npu*) name=NPU ;;
        *.gpu*) name=GPU ;;
        *) name=memory ;;
    esac
    governor=${prefix}governor limit=${prefix}max_freq clock=${prefix}cur_freq

    get "${prefix}available_frequencies" || get "$1/cpuinfo_max_freq" || get "$limit"
    for hz in $REPLY; do
        [[ $hz == *[!0-9]* ]] || ((hz <= top)) || top=$hz
    done
    get "${prefix}available_governors" # boards have hung on unlisted governors
    offered=" $REPLY "
    if [[ $offered == *' userspace '* ]] && ((top)); then
        want=userspace
    elif [[ $offered == *' performance '* ]]; then
        want=performance
    fi
    read -r was_governor was_limit was_step was_clock <<<"${kept[$key]:-- - - -}"
}

# Save the part's state, unless an earlier run has saved it: --restore needs the original.
keep() {
    local file values=()
    [[ -z ${kept[$key]:-} ]] || return
    for file in "$governor" "$limit" "$step" "$clock"; do
        REPLY=
        # There is a step to restore only with governor userspace.
        [[ $file == "$step" && ${values[0]} != userspace ]] || get "$file"
        values+=("${REPLY:--}")
    done
    [[ ${values[0]} == - ]] || kept[$key]=${values[*]}
}

# Write $kept beside the state file, then rename it: an interruption leaves a complete file.
save() {
    local key
    ((${#kept[@]})) || return 0
    {
        for key in "${!kept[@]}"; do printf '%s %s\n' "$key" "${kept[$key]}"; done >"$state.new" &&
            mv -f "$state.new" "$state"
    } 2>/dev/null
}

pin() {
    [[ -n $want ]] || { note=', offers neither userspace nor performance'; return; }
    # The limit first: the kernel lowers a step to it. Old kernels say 0 for no limit.
    get "$limit"
    if [[ $REPLY =~ ^[1-9][0-9]*$ ]] && ((REPLY < top)); then
        put "$top" "$limit" || note=', limit refused'
        get "$limit"
        # Unchanged: it was refused, or it is the limit of a hot chip, which must not be restored
        # when the chip has cooled.
        [[ $REPLY != "$was_limit" ]] || { kept[$key]="$was_governor - $was_step $was_clock"; save; }
    fi
    if [[ $want == performance ]]; then
        put performance "$governor" || note+=', performance refused'
    elif ! { put userspace "$governor" && put "$top" "$step"; }; then
        note+=', userspace refused'
        # userspace without a step keeps the present clock, perhaps the lowest
        { [[ $offered == *' performance '* ]] && put performance "$governor"; } ||
            put "$was_governor" "$governor"
    fi
}

restore() {
    # The governor first: a step can be written only with userspace, a limit with any governor.
    put "$was_governor" "$governor" || note+=', governor refused'
    [[ $was_step == - ]] || put "$was_step" "$step" || note+=', step refused'
    get "$limit"
    [[ $was_limit == - || $was_limit == "$REPLY" ]] || put "$was_limit" "$limit" ||
        note+=', limit refused'
    [[ -z $note ]] || failed=1
}

# show GOVERNOR CLOCK: put both into REPLY, in MHz; without arguments, the part's present ones.
show() {
    local hz=${2:-}
    (($#)) || { get "$clock"; hz=$REPLY; get "$governor"; set -- "$REPLY"; }
    REPLY=${1:--}
    [[ ! $hz =~ ^[1-9][0-9]*$ ]] || REPLY+=" $((hz / per_mhz)) MHz"
}

# Apply $action to the part and print its line of the table.
row() {
    local before asked
    show "$was_governor" "$was_clock"; before=$REPLY
    show "$want" "$top"; asked=$REPLY
    [[ -n ${kept[$key]:-} ]] || asked=-
    case $action in
        pin) pin ;;
        restore)
            show "$was_governor" "$was_step"; asked=$REPLY
            show; before=$REPLY
            [[ $asked == - ]] || restore
            ;;
    esac
    show
    printf '%-12s%-26s%-26s%s\n' "$name" "$before" "$asked" "$REPLY$note"
}

case $#:${1-} in
    0:) action=pin ;;
    1:--restore | 1:--status) action=${1#--} ;;
    1:--help | 1:-h)
        printf '%s\n' "$usage" 'Sets the clocks of CPU, NPU, memory and GPU to their maximum.' \
            '--restore restores the previous clocks, --status changes nothing; each prints a table.'
        exit
        ;;
    *) die "$usage" ;;
esac
[[ $action == status ]] || may_write || die 'only root may change the clocks: sudo ./performance.sh'
[[ $action != restore || -e $state ]] || die "nothing to restore: there is no $state"
{ while read -r key values; do kept[$key]=$values; done <"$state"; } 2>/dev/null

folders=("$cpufreq"/policy* "$devfreq"/*.npu* "$devfreq"/dmc* "$devfreq"/*.gpu*)

if [[ $action == pin ]]; then
    for folder in "${folders[@]}"; do
        look_at "$folder"
        keep
    done
    save || die "cannot write $state, so nothing was changed"
fi
[[ $action == status ]] ||
    trap 'echo "performance.sh: interrupted; to undo it: sudo ./performance.sh --restore" >&3
        exit 130' INT TERM HUP

failed=0 seen=''
printf '%-12s%-26s%-26s%s\n' part before 'asked for' now
for folder in "${folders[@]}"; do
    look_at "$folder"
    row
    seen+=" $name"
done
for part in CPU NPU memory GPU; do
    [[ $seen == *" $part"* ]] || printf '%-12s%s\n' "$part" 'this kernel offers no clock for it'
done
[[ $action != restore ]] || ((failed)) || rm -f "$state"
exit "$failed"
