#!/usr/bin/env bash
# The door of RRT Pipelines: makes the Python environment on first use, then becomes `python -m pipelines ARGUMENTS`.
#
#   run_pipeline.sh COMMAND [OPTIONS]       a command of the pipelines; without one, their help
#   run_pipeline.sh test [PYTEST ARGUMENTS] ruff, mypy, then pytest with coverage; all must pass
#   run_pipeline.sh update-constraints      resolve all extras anew into constraints.txt
#   run_pipeline.sh --explain-environment   say which environment would be used and why, change nothing
#
# Settings, by environment variable:
#   RRT_PYTHON       interpreter to build on (default: the first of python3.11, 3.12, ..., python3 that setup.py allows)
#   RRT_EXTRAS       further extras, separated by commas or spaces: convert, dev, gcp, heif, openvino, s3, spark, timm
#   RRT_ACCELERATOR  cpu or gpu (default: gpu where an NVIDIA device and a wheel for this platform exist)
#   RRT_INSTALLER    uv or pip (default: uv where it can be had, else pip)
#   RRT_VENV         where the environment lies (default: .venv beside this script)
#
# The environment is the folder .venv-KEY, where KEY is a checksum of setup.py, constraints.txt and the choices above;
# `.venv` is a link to the latest. A folder counts only with its stamp, which is written last. Everything that changes
# a folder holds the build lock; every run holds a shared lock on its folder, so that no start removes it under a job.
set -euo pipefail
((BASH_VERSINFO[0] >= 4)) || { echo "run_pipeline.sh: bash 4 or newer is needed, this is $BASH_VERSION" >&2; exit 1; }

readonly KNOWN_EXTRAS=' convert dev gcp heif openvino s3 spark timm '
readonly PYTHON_RANGE='PYTHON_REQUIRES = ">=3\.([0-9]+),<3\.([0-9]+)"'

say() { printf 'run_pipeline.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# ---------------------------------------------------------------------------------------------- what is asked for

find_root() {
    local source=${BASH_SOURCE[0]} target
    [[ $source == */* ]] || source=./$source
    while [[ -L $source ]]; do
        target=$(readlink -- "$source")
        [[ $target == /* ]] || target=${source%/*}/$target
        source=$target
    done
    root=$(CDPATH='' cd -P -- "${source%/*}/" && pwd)
}

# No nvidia-smi here: it takes up to a second, and every start comes by.
gpu_present() {
    [[ $OSTYPE == linux* && $HOSTTYPE == x86_64 ]] || return 1
    [[ -e /dev/nvidia0 || -e /dev/nvidiactl || (-e /dev/dxg && -e /usr/lib/wsl/lib/libcuda.so.1) ]]
}

read_settings() {
    local word words
    accelerator='' extras=''
    read -ra words <<<"${RRT_ACCELERATOR//,/ } ${RRT_EXTRAS//,/ }"
    for word in "${words[@]}"; do
        case $word in
        cpu | gpu)
            [[ -z $accelerator || $accelerator == "$word" ]] ||
                die "cpu and gpu exclude each other: faiss-cpu and faiss-gpu own the same folder faiss/." \
                    "Set RRT_ACCELERATOR to one of them."
            accelerator=$word
            ;;
        *)
            [[ $KNOWN_EXTRAS == *" $word "* && " ${RRT_ACCELERATOR//,/ } " != *" $word "* ]] ||
                die "'$word' is not known: RRT_ACCELERATOR takes cpu or gpu, RRT_EXTRAS takes any of$KNOWN_EXTRAS"
            [[ " $extras " == *" $word "* ]] || extras="${extras:+$extras }$word"
            ;;
        esac
    done
    case ${RRT_INSTALLER:-} in
    '' | uv | pip) ;;
    *) die "RRT_INSTALLER is '$RRT_INSTALLER'; it takes uv or pip" ;;
    esac
    accelerator_reason="RRT_ACCELERATOR or RRT_EXTRAS says so"
    if [[ -z $accelerator ]]; then
        if gpu_present; then
            accelerator=gpu accelerator_reason="this machine has an NVIDIA device"
        else
            accelerator=cpu accelerator_reason="no NVIDIA device, or no faiss-gpu wheel for this platform"
        fi
    elif [[ $accelerator == gpu && ! ($OSTYPE == linux* && $HOSTTYPE == x86_64) ]]; then
        die "there is no faiss-gpu wheel for $OSTYPE on $HOSTTYPE: use RRT_ACCELERATOR=cpu"
    fi
}

name_environment() {
    local crc size
    [[ -r $root/setup.py && -r $root/constraints.txt ]] || die "cannot read setup.py and constraints.txt in $root"
    place=${RRT_VENV:-$root/.venv}
    place=${place%/}
    [[ $place == /* ]] || place=$PWD/$place
    # The root is part of the key: the environment holds its absolute path, and a copied checkout must not run the
    # original's code. The extras are not: they are added to an environment that lacks them.
    read -r crc size < <(
        cksum <<<"$root|$accelerator|${RRT_PYTHON:-}|$(<"$root/setup.py")|$(<"$root/constraints.txt")"
    )
    environment=$place-$crc-$size
    workshop=$place-door
    log=$workshop/install.log
}

# Sets `lacking` to the extras that are asked for but not installed; fails where there is no whole environment.
environment_is_whole() {
    local word installed
    lacking=''
    [[ -x $environment/bin/python ]] && { read -r installed <"$environment/rrt-stamp"; } 2>/dev/null || return 1
    for word in $extras; do
        [[ " $installed " == *" $word "* ]] || lacking="${lacking:+$lacking }$word"
    done
}

environment_is_ready() { environment_is_whole && [[ -z $lacking ]]; }

# ---------------------------------------------------------------------------------------------- locks

# lock FD s|x [n]: flock(1) where there is one (Linux), else Python's, which locks the same open file (macOS).
lock() {
    if command -v flock >/dev/null; then
        flock "-$2" ${3:+"-$3"} "$1" 2>/dev/null
    else
        "${python:-$environment/bin/python}" -ISc 'import fcntl, sys
mode = fcntl.LOCK_SH if sys.argv[2] == "s" else fcntl.LOCK_EX
fcntl.flock(int(sys.argv[1]), mode | (fcntl.LOCK_NB if sys.argv[3:] else 0))' "$@" 2>/dev/null
    fi
}

# Held until the run ends, since Python inherits the descriptor. pyvenv.cfg is a file that an environment has for life.
hold_environment() {
    { exec 8<"$environment/pyvenv.cfg"; } 2>/dev/null || return 1
    lock 8 s || true # a file system without locks: run all the same
    environment_is_ready # it may have been removed before the lock was ours
}

# ---------------------------------------------------------------------------------------------- making it

find_python() {
    local candidate minor low high candidates=()
    [[ $(<"$root/setup.py") =~ $PYTHON_RANGE ]] ||
        die "cannot find PYTHON_REQUIRES in $root/setup.py"
    low=${BASH_REMATCH[1]} high=${BASH_REMATCH[2]}
    for ((minor = low; minor < high; minor++)); do candidates+=("python3.$minor"); done
    candidates+=(python3 python)
    [[ -z ${RRT_PYTHON:-} ]] || candidates=("$RRT_PYTHON")
    for candidate in "${candidates[@]}"; do
        # Run it, since a name on the PATH may be a version manager's shim that leads nowhere. The real path, since a
        # link like python3 may point to another version tomorrow.
        python=$("$candidate" -ISc "import os, sys
print(os.path.realpath(sys.executable))
sys.exit(not (3, $low) <= sys.version_info[:2] < (3, $high))" 2>/dev/null) && return
    done
    if [[ -n ${RRT_PYTHON:-} ]]; then
        die "RRT_PYTHON=$RRT_PYTHON is no Python from 3.$low up to, not including, 3.$high"
    fi
    # Interpreters off the PATH (uv's own, pyenv's).
    python=$(uv python find --no-project ">=3.$low,<3.$high" 2>/dev/null) && return
    die "no Python from 3.$low up to, not including, 3.$high was found: install one, or name it by RRT_PYTHON"
}

# A line every ten seconds, so that a person sees that the installation is alive.
report_progress() {
    local start=$SECONDS line
    while sleep 10 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        line=$(tail -n 1 -- "$log" 2>/dev/null) || line=''
        say "  $((SECONDS - start)) s  ${line:0:100}"
    done
}

advice_for_failure() {
    local text
    text=$(tail -n 60 -- "$log")
    case $text in
    *'No space left'* | *'Disk quota'*)
        echo "the disk is full: about 10 GB are needed in ${environment%/*} and in the installer's cache" ;;
    *ensurepip*)
        echo "this Python lacks venv: install python3-venv (Debian, Ubuntu), or uv" ;;
    *'name resolution'* | *'dns error'* | *'onnection refused'* | *'Network is unreachable'* | \
        *'error sending request'* | *'Failed to establish a new connection'*)
        echo "the package index cannot be reached: check the network and its proxy settings, then start again" ;;
    *'certificate'*)
        echo "the package index's certificate is not trusted: point SSL_CERT_FILE to your authority's certificates" ;;
    *)
        echo "its end says why; start again when that is fixed" ;;
    esac
}

# What is built is a copy of setup.py alone: builds write beside it, and the checkout may be read-only.
copy_setup() {
    rm -rf -- "$1" && mkdir -- "$1" && cp -- "$root/setup.py" "$root/pyproject.toml" "$1/"
}

# The pinned dependencies, this package's metadata and its console script; the code itself comes by a .pth line.
install() { # install uv|pip EXTRAS...
    local tool=$1 list
    shift
    list=$*
    list="./package[${list// /,}]"
    copy_setup "$workshop/package" || return 1
    (
        cd "$workshop" || exit 1
        export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
        case $tool in
        uv)
            "$uv" pip install --compile-bytecode --python "$environment/bin/python" --constraints "$root/constraints.txt" \
                --build-constraints "$root/constraints.txt" --reinstall-package rrt-pipelines "$list"
            ;;
        pip)
            "$environment/bin/python" -m pip install --constraint "$root/constraints.txt" --progress-bar off "$list"
            ;;
        esac
    ) >>"$log" 2>&1
}

# Finds uv (PATH), or puts the pinned one into the environment by pip; sets `uv` to '' where that cannot be done.
find_uv() {
    local pin
    uv=''
    [[ ${RRT_INSTALLER:-} != pip ]] || return 0
    if [[ -x $environment/bin/uv ]]; then
        uv=$environment/bin/uv
    elif uv --version >/dev/null 2>&1; then
        uv=$(command -v uv)
    elif [[ -x $environment/bin/pip ]]; then
        pin=$(grep -m 1 '^uv==' "$root/constraints.txt") || pin=uv
        PIP_USER=0 "$environment/bin/python" -m pip install --disable-pip-version-check "${pin%% *}" >>"$log" 2>&1 &&
            uv=$environment/bin/uv
    fi
    [[ -n $uv || ${RRT_INSTALLER:-} != uv ]] || die "uv could not be had, and RRT_INSTALLER=uv asks for it; see $log"
}

# An empty environment: uv's where uv is on the PATH (no pip needed), else venv's with pip.
create_environment() {
    rm -rf -- "$environment" || die "cannot remove the half-made environment $environment"
    find_uv
    if [[ -n $uv ]]; then
        "$uv" venv --no-project --python "$python" "$environment" >>"$log" 2>&1
    else
        "$python" -m venv "$environment" >>"$log" 2>&1
    fi || die "no virtual environment could be made at $environment (log: $log): $(advice_for_failure)"
    find_uv
}

# uv first; pip where uv fails, since it may know the index, the proxy or the certificates (pip.conf).
install_with_any() {
    if [[ -n $uv ]]; then
        install uv "$@" && return
        [[ ${RRT_INSTALLER:-} != uv ]] || return 1
        say "uv could not install; trying pip"
        "$environment/bin/python" -m pip --version >>"$log" 2>&1 ||
            "$environment/bin/python" -m ensurepip >>"$log" 2>&1 || return 1
    fi
    install pip "$@"
}

make_environment() {
    local chosen=$accelerator wanted=$extras installed site word
    { mkdir -p -- "$workshop" && : >"$workshop/lock"; } 2>/dev/null ||
        die "cannot write to $workshop: set RRT_VENV to a place for the environment that you may write to"
    find_python
    exec 9<>"$workshop/lock"
    if ! lock 9 x n; then
        say "another start is making the environment; waiting for it"
        lock 9 x || die "cannot lock $workshop/lock: set RRT_VENV to a place on a local disk"
    fi
    if environment_is_ready; then
        exec 9<&-
        return
    fi

    : >"$log"
    report_progress 9<&- &
    progress=$!
    disown "$progress"
    trap 'kill "$progress" 2>/dev/null || true' EXIT
    if environment_is_whole; then
        read -r installed <"$environment/rrt-stamp"
        chosen=${installed:6:3} # faiss-cpu or faiss-gpu comes first
        wanted="${installed:9} $lacking"
        say "adding to the environment: $lacking"
        rm -f -- "$environment/rrt-stamp" # a kill from here on makes the next start build anew
        find_uv
    else
        # What was added to the environment that this one replaces is wanted still.
        read -r installed 2>/dev/null <"$place/rrt-stamp" || installed=''
        for word in ${installed:9}; do
            [[ $KNOWN_EXTRAS != *" $word "* || " $wanted " == *" $word "* ]] || wanted="${wanted:+$wanted }$word"
        done
        say "making the Python environment $environment ($chosen: $accelerator_reason)"
        say "this takes a minute or more and about 6 GB, once (log: $log)"
        create_environment
    fi

    # shellcheck disable=SC2086 # lists of words
    if ! { install_with_any "$chosen" $wanted && imports_faiss; }; then
        if [[ $chosen == gpu && $accelerator_reason == this* ]]; then
            say "faiss-gpu could not be installed here (log: $log.gpu); taking faiss-cpu"
            mv -f -- "$log" "$log.gpu"
            : >"$log"
            chosen=cpu
            create_environment
            install_with_any "$chosen" $wanted && imports_faiss
        else
            false
        fi || die "the installation failed (log: $log): $(advice_for_failure)"
    fi
    site=$("$environment/bin/python" -Ic 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$root" >"$site/rrt-pipelines.pth"
    # shellcheck disable=SC2086
    printf '%s ' "faiss-$chosen" $wanted >"$environment/rrt-stamp.new"
    echo >>"$environment/rrt-stamp.new"
    mv -f -- "$environment/rrt-stamp.new" "$environment/rrt-stamp"

    if [[ -L $place || ! -e $place ]]; then
        ln -sfn -- "${environment##*/}" "$place"
    fi
    remove_old_environments
    kill "$progress" 2>/dev/null || true
    trap - EXIT
    exec 9<&-
    say "the environment is ready"
}

# Both wheels install anywhere; whether the libraries they want are there shows when they are loaded.
imports_faiss() { "$environment/bin/python" -Ic 'import faiss' >>"$log" 2>&1; }

remove_old_environments() {
    local old
    rm -rf -- "$workshop/package"
    for old in "$place"-[0-9]*-[0-9]*; do
        [[ -d $old && $old != "$environment" ]] || continue
        if [[ -e $old/pyvenv.cfg ]]; then
            exec 7<>"$old/pyvenv.cfg"
            # Started without this door (.venv/bin/python), a run holds no lock, but has the folder's libraries mapped.
            if ! lock 7 x n || grep -qsF -- "$old/" /proc/[0-9]*/maps; then
                say "keeping $old for now: a run uses it"
                continue
            fi
        fi
        rm -f -- "$old/rrt-stamp" && rm -rf -- "$old"
        exec 7<&-
    done
}

# ---------------------------------------------------------------------------------------------- what it is for

explain_environment() {
    local state='whole'
    if ! environment_is_whole; then
        state='to be made'
        [[ ! -d $environment ]] || state='half-made, to be made anew'
    elif [[ -n $lacking ]]; then
        state="whole, to be added: $lacking"
    fi
    printf '%s\n' "root: $root" "environment: $environment" "state: $state" \
        "accelerator: $accelerator ($accelerator_reason)" "extras: ${extras:-none}"
}

run_tests() {
    local failed=() whole=()
    cd "$root"
    # A chosen few tests cover what they cover, and are not worth two processes.
    (($# > 0)) || whole=(--numprocesses 2 --dist worksteal --cov-fail-under=78)
    export PATH="$environment/bin:$PATH"
    # One thread a process: tests start workers of their own, and threads above the cores slow them manyfold.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
    ruff check . || failed+=(ruff)
    ruff format --check . || failed+=(ruff-format)
    mypy || failed+=(mypy)
    python -m pytest --cov --cov-report=term:skip-covered "${whole[@]}" "$@" || failed+=(pytest)
    ((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
}

update_constraints() {
    local low new=constraints.new uv=$environment/bin/uv accelerator
    [[ $(<"$root/setup.py") =~ $PYTHON_RANGE ]] && low=3.${BASH_REMATCH[1]}
    { mkdir -p -- "$workshop" && cd "$workshop" && copy_setup resolved; } 2>/dev/null || die "cannot write to $workshop"
    rm -f -- "$new" # an existing output would be taken as a preference for the old versions
    "$uv" pip compile resolved/setup.py --all-extras --universal --python-version "$low" \
        --no-header --no-annotate --quiet --output-file "$new" || die "the requirements of setup.py cannot be resolved"
    for accelerator in cpu gpu; do
        [[ $accelerator == cpu || ($OSTYPE == linux* && $HOSTTYPE == x86_64) ]] || continue
        "$uv" pip install --dry-run --quiet --python "$environment/bin/python" --constraints "$new" \
            --build-constraints "$new" "./resolved[$accelerator,convert,dev,gcp,s3,spark,timm]" ||
            die "what was resolved ($workshop/$new) does not install with $accelerator; constraints.txt is as it was"
    done
    cp -- "$new" "$root/constraints.txt.new" && mv -f -- "$root/constraints.txt.new" "$root/constraints.txt"
    rm -rf -- "$new" resolved
    say "constraints.txt pins $(grep -c == "$root/constraints.txt") packages; the next start installs what changed"
}

# ---------------------------------------------------------------------------------------------- the way through

RRT_ACCELERATOR=${RRT_ACCELERATOR:-} RRT_EXTRAS=${RRT_EXTRAS:-}
case ${1:-} in
test | update-constraints) RRT_EXTRAS+=' dev' ;;
esac
find_root
read_settings
name_environment
if [[ ${1:-} == --explain-environment ]]; then
    explain_environment
    exit
fi
attempts=0
until environment_is_ready && hold_environment; do
    ((attempts++ < 3)) || die "the environment $environment cannot be used: remove it and start again"
    make_environment
done

unset PYTHONHOME
# A folder named schemas or pipelines in the caller's working directory must not stand in for ours, here or in workers.
export PYTHONSAFEPATH=1
case ${1:-} in
test) run_tests "${@:2}" ;;
update-constraints) update_constraints ;;
*) exec "$environment/bin/python" -m pipelines "$@" ;;
esac
