#!/usr/bin/env bash
# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
#
# Makes a tested environment: requirements/modern.txt, or with
# `--stack classic` requirements/classic.txt.
#     bash tools/setup_env.sh && source .venv/bin/activate
# The other scripts source this one, which activates it for them; they take
# `--stack`, too, as their first argument. A second run finds everything in
# place.
#
#   LT_VENV             the environment         (default: .venv in the checkout,
#                       or .venv-classic)
#   LT_PYTHON           the Python it is made with
#   LT_LOSSES_MM_CACHE  where the compiled mmcv goes, and what the package
#                       keeps                   (default: ~/.cache/lt_losses_mm)
#   TORCH_INDEX_URL     where torch comes from  (default: pip's own index, whose
#                       Linux wheels carry CUDA), for example
#                       https://download.pytorch.org/whl/cpu
#   MAX_JOBS            compilers at a time     (default: one a core)
set -euo pipefail

lt_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lt_stack=modern
if [[ ${1:-} == --stack ]]; then
    lt_stack=${2:-}
    shift $(($# > 1 ? 2 : 1))
fi
lt_pins=$lt_root/requirements/$lt_stack.txt
case $lt_stack in
modern)
    lt_venv=$lt_root/.venv
    lt_pythons=(3.11 3.12)
    lt_mmcv=onedl-mmcv
    lt_wanted=(-r "$lt_root/requirements/mminstall.txt"
        -r "$lt_root/requirements.txt")
    ;;
classic)
    lt_venv=$lt_root/.venv-classic
    lt_pythons=(3.10)
    lt_mmcv=mmcv
    lt_wanted=(-r "$lt_pins")
    ;;
*)
    echo "--stack '$lt_stack', expected modern or classic" >&2
    exit 1
    ;;
esac
lt_venv=${LT_VENV:-$lt_venv}
lt_cache=${LT_LOSSES_MM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lt_losses_mm}
lt_log=$lt_venv/setup.log

lt_say() { printf '[setup] %s\n' "$*"; }

lt_die() {
    lt_say "$*" >&2
    exit 1
}

lt_pin() { sed -n "s/^$1==//p" "$lt_pins"; }

# lt_run WHAT COMMAND...: output to the log, a line on the screen every 15 s.
lt_run() {
    local what=$1 begin=$SECONDS next=$((SECONDS + 15)) done_of
    shift
    lt_say "$what ..."
    printf '\n=== %s: %s\n' "$what" "$*" >>"$lt_log"
    # In a process group of its own, or Ctrl-C would leave compilers running.
    set -m
    "$@" >>"$lt_log" 2>&1 </dev/null &
    local job=$!
    set +m
    trap 'kill -- "-$job"; lt_die interrupted' INT TERM
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        if ((SECONDS >= next)); then
            next=$((SECONDS + 15))
            # ninja prints [files done/files]
            done_of=$(tail -n 50 "$lt_log" |
                grep -o '^ *\[[0-9]*/[0-9]*\]' | tail -n 1 || true)
            lt_say "  $((SECONDS - begin)) s $done_of"
        fi
    done
    if ! wait "$job"; then
        tail -n 40 "$lt_log" >&2
        lt_die "failed: $what. The whole log is $lt_log"
    fi
    trap - INT TERM
    lt_say "  done in $((SECONDS - begin)) s"
}

lt_find_python() {
    local version name
    # pyenv's, of which `python3` is but one.
    for version in "${lt_pythons[@]}"; do
        for name in ${LT_PYTHON:-} python3 "python$version" \
            "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
            if "$name" -c "import sys, venv, ensurepip
sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
                echo "$name"
                return
            fi
        done
    done
    lt_die "needs Python ${lt_pythons[0]} with the venv module. On Debian and" \
        "Ubuntu: apt install python${lt_pythons[0]}-venv" \
        "python${lt_pythons[0]}-dev; any other one: LT_PYTHON=/path/to/python"
}

# Compiles mmcv into the directory $1.
lt_build_mmcv() {
    local work cxx=g++
    work=$(mktemp -d)
    if [[ $lt_stack == modern ]]; then
        # Its sources ask for C++17 and torch's headers for C++20; of two -std
        # the last one counts, so a wrapper adds it.
        cxx=$work/c++
        printf '#!/bin/sh\nexec g++ "$@" -std=c++20\n' >"$cxx"
        chmod +x "$cxx"
    fi
    # A GPU in sight would make the build ask for nvcc. pip's cache knows a
    # wheel by its version only, not by the torch it was compiled against.
    CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0 MMCV_WITH_OPS=1 CXX="$cxx" \
        MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        python -m pip wheel -v --no-cache-dir --no-deps --no-build-isolation \
        --no-binary "$lt_mmcv" --wheel-dir "$work/wheel" \
        "$lt_mmcv==$(lt_pin "$lt_mmcv")"
    mkdir -p "$1"
    mv "$work"/wheel/*.whl "$1"
    rm -r "$work"
}

lt_install() {
    local python torch tag wheels
    torch=$(lt_pin torch)
    python=$(lt_find_python)
    if [[ ! -x $lt_venv/bin/python ]]; then
        lt_say "$("$python" --version), environment in $lt_venv"
        "$python" -m venv "$lt_venv"
    fi
    # shellcheck disable=SC1091
    source "$lt_venv/bin/activate"
    lt_say "log in $lt_log"
    : >"$lt_log"

    lt_run "torch $torch" python -m pip install -c "$lt_pins" \
        ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
        torch torchvision numpy
    lt_run 'build tools' python -m pip install -c "$lt_pins" \
        -r "$lt_root/requirements/build.txt"

    tag=$(python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    wheels=$lt_cache/wheels/torch-$torch-$tag
    local name
    name=${lt_mmcv//-/_}-$(lt_pin "$lt_mmcv")-$tag-$tag-*$(uname -m).whl
    if ! compgen -G "$wheels/$name" >/dev/null; then
        command -v g++ >/dev/null ||
            lt_die 'needs g++ to compile mmcv: apt install g++'
        "$lt_venv/bin/python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
            lt_die "needs Python's headers: apt install python${lt_pythons[0]}-dev"
        lt_run "compiling $lt_mmcv $(lt_pin "$lt_mmcv"), once; about 20 \
minutes on 2 cores" lt_build_mmcv "$wheels"
    fi
    # shellcheck disable=SC2086
    lt_run 'mmcv' python -m pip install --no-deps \
        $(compgen -G "$wheels/$name" | head -n 1)
    lt_run 'mmdet, mmpretrain, mmseg and the tools of tests and docs' \
        python -m pip install -c "$lt_pins" "${lt_wanted[@]}"
    lt_run 'lt_losses_mm from the checkout' \
        python -m pip install --no-deps --no-build-isolation -e "$lt_root"
    lt_run 'pip check' python -m pip check
}

# Everything that decides what is installed, and where.
lt_state=$(cd "$lt_root" && {
    echo "$lt_root $lt_venv ${TORCH_INDEX_URL:-}"
    cat requirements.txt requirements/*.txt lt_losses_mm/version.py \
        tools/setup_env.sh
} | sha256sum)
if [[ $(cat "$lt_venv/.lt_losses_mm" 2>/dev/null) != "$lt_state" ]]; then
    lt_install
    echo "$lt_state" >"$lt_venv/.lt_losses_mm"
else
    lt_say "up to date: $lt_venv"
fi
# shellcheck disable=SC1091
source "$lt_venv/bin/activate"
# The ops of this mmcv are compiled for the CPU: on a GPU, NMS would fail.
export CUDA_VISIBLE_DEVICES=''
