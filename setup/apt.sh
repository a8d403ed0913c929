#!/bin/bash
# Install what is missing of the Debian packages in a section of apt-packages.txt: setup/apt.sh SECTION
set -euo pipefail
LIST=$(dirname "$0")/apt-packages.txt
SECTION=$1

die() {
    echo "make: $*" >&2
    exit 1
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# has PACKAGE [VERSION]: it is installed, in that version or a later one.
has() {
    local status version
    read -r status version < <(dpkg-query -W -f='${db:Status-Status} ${Version}\n' "$1" 2>/dev/null) || true
    [[ ${status-} == installed ]] &&
        { [[ -z ${2-} ]] || dpkg --compare-versions "$version" ge "$2"; }
}

# The backports of the release, from where the release itself comes from.
add_backports() {
    local codename=$1 uri keys=/usr/share/keyrings/debian-archive-keyring.gpg
    uri=$(apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' |
        sed -n "s/|$codename|main\$//p" | head -n 1)
    [[ -n $codename && -n $uri ]] || return 1
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' "$uri" "$codename"
        if [[ -e $keys ]]; then echo "Signed-By: $keys"; fi
    } | as_root tee /etc/apt/sources.list.d/vauban-backports.sources >/dev/null
    as_root apt-get update -qq
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "apt-get failed; as root, run: apt-get install $*"
}

install_packages() {
    local package at_least codename usual=() newer=()
    while read -r package _ at_least; do
        has "$package" "$at_least" || usual+=("$package $at_least")
    done < <(sed -n "/^\[$SECTION\]\$/,/^\[/{/^[^#[]/p}" "$LIST")
    if ((${#usual[@]} == 0)); then return; fi
    ((EUID == 0)) || command -v sudo >/dev/null ||
        die "as root, run: apt-get install ${usual[*]% *}"
    echo "Installing ${usual[*]% *}"
    as_root apt-get update -qq || die "apt-get update failed"
    for index in "${!usual[@]}"; do
        read -r package at_least <<<"${usual[index]}"
        usual[index]=$package
        if [[ -n $at_least ]] && ! dpkg --compare-versions \
            "$(apt-cache policy "$package" | sed -n 's/^  Candidate: //p')" ge "$at_least"; then
            newer+=("$package")
            unset "usual[index]"
        fi
    done
    if ((${#usual[@]})); then apt_install "${usual[@]}"; fi
    if ((${#newer[@]})); then
        codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
        add_backports "$codename" ||
            die "this release's ${newer[*]} is too old, and its backports can't be reached"
        apt_install -t "$codename-backports" "${newer[@]}"
    fi
}

if command -v dpkg-query >/dev/null; then install_packages; fi
