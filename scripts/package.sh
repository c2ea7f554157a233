#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the packages: .deb and .rpm for amd64 and arm64, with manual pages and
# completions that the commands themselves write.
#   scripts/package.sh [--version V] [--out DIR] [--arch ARCH]... [--format deb|rpm]...
# Needs only Go; the packager (nfpm) is a module of its own, scripts/package/go.mod.
# Two runs on one source make the same files, if SOURCE_DATE_EPOCH is set.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin

version='' out=dist arches=() formats=()
while [ $# -gt 0 ]; do
  case "$1" in
    --version | --out | --arch | --format)
      [ $# -gt 1 ] || { echo "package: $1 needs a value" >&2; exit 2; } ;;&
    --version) version=$2 ;;
    --out) out=$2 ;;
    --arch) arches+=("$2") ;;
    --format) formats+=("$2") ;;
    *) sed -n '3,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
[ "${#arches[@]}" -gt 0 ] || arches=(amd64 arm64)
[ "${#formats[@]}" -gt 0 ] || formats=(deb rpm)
# The day of the source, as the only version that a checkout has by itself.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH=$epoch
[ -n "$version" ] || version=0.0.$(date -u -d "@$epoch" +%Y%m%d)

mkdir -p "$out"
out=$(cd "$out" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go -C scripts/package build -o "$dir/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm

build() { # GOARCH FILE
  CGO_ENABLED=0 GOARCH=$1 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.release=$version" -o "$2" ./cmd/tapgate
}
# One that runs here writes what is the same for all.
build "$(go env GOHOSTARCH)" "$dir/tapgate"
share=$dir/share
mkdir -p "$share"/{bash-completion/completions,zsh/vendor-completions,zsh/site-functions,fish/vendor_completions.d,doc/tapgate/monitoring,tapgate}
"$dir/tapgate" man "$dir/man"
for section in 5 7 8; do
  mkdir -p "$share/man/man$section"
  mv "$dir"/man/*."$section" "$share/man/man$section/"
done
gzip -9n "$share"/man/man?/*
"$dir/tapgate" completion bash >"$share/bash-completion/completions/tapgate"
"$dir/tapgate" completion fish >"$share/fish/vendor_completions.d/tapgate.fish"
"$dir/tapgate" completion zsh >"$dir/_tapgate"
"$dir/tapgate" config schema >"$share/tapgate/tapgate.schema.json"
cp README.md scripts/package/tapgate.yaml "$share/doc/tapgate/"
cp LICENSE "$share/doc/tapgate/copyright"
cp LICENSES/* "$share/doc/tapgate/"
cp scripts/monitoring/* "$share/doc/tapgate/monitoring/"

for arch in "${arches[@]}"; do
  build "$arch" "$dir/tapgate-$arch"
  for format in "${formats[@]}"; do
    stage=$dir/$arch-$format
    root=$stage/root
    mkdir -p "$stage/scripts" "$root"/usr/{sbin,lib/systemd/system}
    cp "$dir/tapgate-$arch" "$root/usr/sbin/tapgate"
    cp scripts/package/*.sh "$stage/scripts/"
    cp scripts/systemd/*.service "$root/usr/lib/systemd/system/"
    cp -r "$share" "$root/usr/share"
    # Where each family's zsh looks.
    zsh=site-functions
    if [ "$format" = deb ]; then zsh=vendor-completions; fi
    cp "$dir/_tapgate" "$root/usr/share/zsh/$zsh/"
    find "$root" -type d -empty -delete
    find "$root" -type d -exec chmod 0755 {} +
    find "$root" -type f -exec chmod 0644 {} +
    chmod 0755 "$root/usr/sbin/tapgate"
    find "$root" -exec touch -hd "@$epoch" {} +
    (
      cd "$stage"
      ARCH=$arch VERSION=$version \
        "$dir/nfpm" package --config "$here/scripts/package/nfpm.yaml" --packager "$format" --target "$out/"
    )
  done
done
