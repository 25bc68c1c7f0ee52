#!/usr/bin/env bash
# checkout.sh NAME FOLDER REPOSITORY COMMIT [REF]
# Checks out one commit of a repository with its submodules, without history. If REF (a tag) is given, it is fetched instead
# and must point to the commit. The commit is written to /built/NAME.commit, which check_pins.py compares with the pin.
set -eu -o pipefail
name=$1 folder=$2 repository=$3 commit=$4 ref=${5:-$4}

git init --quiet "$folder"
git -C "$folder" remote add origin "$repository"
git -C "$folder" fetch --quiet --depth=1 origin "$ref"
git -C "$folder" checkout --quiet --detach FETCH_HEAD
head=$(git -C "$folder" rev-parse HEAD)
[[ $head == "$commit"* ]] || { echo "$repository: $ref is $head, pinned $commit" >&2; exit 1; }
git -C "$folder" submodule --quiet update --init --recursive --depth=1
mkdir -p "${BUILT:=/built}"
echo "$head" > "$BUILT/$name.commit"
