#!/usr/bin/env bash
# The merged models that the main tables compare: fixed block weights, searched ones, and those of the aggregator.
# What is there already is kept: remove build/merged and build/search to make all again.
set -euo pipefail
cd "$(dirname "$0")/../.."
captions=$(sed -n 's/^  - //p' recipes/zoo/search.yaml)
mapfile -t prompts <<<"$captions"
for group in ${@:-topics styles}; do
    out=build/merged/$group
    if [ ! -e "$out-auto" ]; then
        diffusemble search --config recipes/zoo/search.yaml "experts=zoo:$group" "out=build/search/$group" "merged=$out-auto"
        diffusemble merge --config "build/search/$group/recipe.yaml" --out "$out-auto"
    fi
    if [ ! -e "$out-afa" ]; then
        diffusemble export "zoo:$group" "${prompts[@]}" --out "$out-afa.yaml" --merged "$out-afa" --set guidance=4.5 --set steps=20
        diffusemble merge --config "$out-afa.yaml" --out "$out-afa"
    fi
    [ -e "$out-mbw" ] || diffusemble merge "zoo:$group" --set 'blocks=[GRAD_V,GRAD_A,FLAT_50]' --out "$out-mbw"
done
