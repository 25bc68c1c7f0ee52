#!/usr/bin/env bash
# record_digests.sh
# Prints what the Dockerfile could pin by content and does not yet: the digests of its base images. Run it where their registry
# can be reached, and write the lines into the Dockerfile (ARG …) and docs/container.md. Needs docker (buildx).
set -eu -o pipefail
dockerfile=$(dirname "$0")/../Dockerfile

pin() { sed -n "s/^ARG $1=//p" "$dockerfile" | head -1; }

for name in BASE_IMAGE READY_MADE_IMAGE CURRENT_IMAGE; do
    image=$(pin "$name")
    digest=$(docker buildx imagetools inspect "${image%@*}" --format '{{.Manifest.Digest}}')
    [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$image: no digest but ${digest:-nothing}" >&2; exit 1; }
    echo "ARG $name=${image%@*}@$digest"
done
