#!/bin/sh
# Fetches the consul program for the tests, without root, and prints its path.
#
#     tests/get-consul.sh [FOLDER] [SUITE]
#
#   FOLDER  where it goes; default ./consul-bin. The program becomes FOLDER/usr/bin/consul.
#   SUITE   the Debian suite that carries the package; default bullseye.
#
# Then:  CONSUL_BIN=$(tests/get-consul.sh) cargo test
#
# It asks the mirrors that this machine uses for Debian anyway, with the keys that this machine trusts for them, and
# only names another suite. Everything that apt writes goes to a temporary folder, so the machine's own packages are
# neither read nor changed. Signatures are checked: an index without a good one ends in an error. A second run finds
# the program in place and does nothing.
set -eu
umask 022

folder=${1:-./consul-bin}
suite=${2:-bullseye}
sources=${PICOM_APT_ETC:-/etc/apt}
program=$folder/usr/bin/consul

fail() {
    echo "get-consul: $*" >&2
    exit 1
}

if [ -x "$program" ]; then
    echo "$program"
    exit 0
fi
for tool in apt-get dpkg-deb awk; do
    command -v "$tool" >/dev/null || fail "$tool is missing; this needs a machine of the Debian family"
done

work=$(mktemp -d "${TMPDIR:-/tmp}/get-consul.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$work/cache/archives/partial" "$work/empty" "$work/download"
: > "$work/status"

# Prints "mirror key-file" for every source of type deb with the component main; the key-file may be missing.
mirrors() {
    # The newer form: paragraphs of "Field: value", where a line that starts with a blank continues the one before.
    for file in "$sources"/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        awk '
            function finish(    n, i, uri) {
                if (!off && (" " value["types"] " ") ~ / deb / && (" " value["components"] " ") ~ / main /) {
                    n = split(value["uris"], uri, " ")
                    for (i = 1; i <= n; i++) print uri[i], value["signed-by"]
                }
                split("", value); off = 0; name = ""
            }
            /^#/ { next }
            /^[ \t]*$/ { finish(); next }
            /^[ \t]/ { if (name != "") value[name] = value[name] " " $0; next }
            {
                colon = index($0, ":"); name = tolower(substr($0, 1, colon - 1))
                value[name] = substr($0, colon + 1)
                gsub(/^[ \t]+|[ \t]+$/, "", value[name])
                if (name == "enabled" && tolower(value[name]) ~ /^(no|false|0)$/) off = 1
            }
            END { finish() }' "$file"
    done
    # The older form: deb [option=value …] mirror suite component …
    for file in "$sources"/sources.list "$sources"/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        awk '
            { sub(/#.*/, "") }
            $1 != "deb" { next }
            {
                key = ""; at = 2
                if ($2 ~ /^\[/) {
                    while (at < NF && $at !~ /\]$/) at++
                    for (i = 2; i <= at; i++) {
                        option = $i; gsub(/[][]/, "", option)
                        if (option ~ /^signed-by=/) key = substr(option, 11)
                    }
                    at++
                }
                for (i = at + 2; i <= NF; i++) if ($i == "main") { print $at, key; next }
            }' "$file"
    done
}

# Prints the file with the keys for a mirror: what its source names, else the keys of Debian itself.
key_file() {
    for key in "${1%%,*}" \
        /usr/share/keyrings/debian-archive-keyring.gpg \
        /usr/share/keyrings/debian-archive-keyring.pgp \
        /etc/apt/trusted.gpg.d/debian-archive-"$suite"-stable.asc \
        /etc/apt/trusted.gpg.d/debian-archive-"$suite"-stable.gpg; do
        case $key in
            /*) [ -r "$key" ] && { echo "$key"; return; } ;;
        esac
    done
}

# apt-get with nothing of its own outside the temporary folder.
apt() {
    DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q \
        -o Dir::State="$work/state" \
        -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work/cache" \
        -o Dir::Etc::sourcelist="$work/sources.list" \
        -o Dir::Etc::sourceparts=- \
        -o Dir::Etc::preferences="$work/none" \
        -o Dir::Etc::preferencesparts="$work/empty" \
        -o Dir::Etc::trusted="$work/none" \
        -o Dir::Etc::trustedparts="$work/empty" \
        -o APT::Sandbox::User="$(id -un)" \
        -o APT::Get::AllowUnauthenticated=false \
        -o Acquire::AllowInsecureRepositories=false \
        -o Acquire::AllowDowngradeToInsecureRepositories=false \
        -o Acquire::Languages=none \
        -o Acquire::Retries=2 \
        "$@"
}

mirrors | sort -u > "$work/mirrors"
[ -s "$work/mirrors" ] || fail "no Debian mirrors are written down under $sources"

package=
while read -r mirror key; do
    case $mirror in
        *security* | *-updates* | *backports*) continue ;;
    esac
    key=$(key_file "$key")
    [ -n "$key" ] || continue
    echo "deb [signed-by=$key] $mirror $suite main" > "$work/sources.list"
    rm -rf "$work/state"
    mkdir -p "$work/state/lists/partial"
    apt update > "$work/log" 2>&1 || continue
    # apt ends with success although an index is missing or badly signed; the log tells.
    if grep -Eq '^(E:|Err)|^W:.*(not signed|GPG error|Failed to fetch)' "$work/log"; then continue; fi
    (cd "$work/download" && apt download consul) >> "$work/log" 2>&1 || continue
    package=$(find "$work/download" -name 'consul_*.deb' | head -n 1)
    [ -z "$package" ] || break
done < "$work/mirrors"
if [ -z "$package" ]; then
    [ ! -f "$work/log" ] || sed 's/^/    /' "$work/log" >&2
    fail "no mirror of this machine carries consul for $suite with a good signature"
fi

# Tried first and moved into place whole, so that a broken download never looks like a finished one.
dpkg-deb -x "$package" "$work/unpacked"
"$work/unpacked/usr/bin/consul" version > /dev/null || fail "the program does not run on this machine"
mkdir -p "${program%/*}"
cp "$work/unpacked/usr/bin/consul" "$program.$$"
mv -f "$program.$$" "$program"
echo "$program"
