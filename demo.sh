#!/bin/sh
# The whole way on generated data: toy files -> teacher -> fixed-point student -> C++ and ONNX, verified bit for bit -> one table.
# Run by `make demo`; every run makes a new folder under demo/, nothing is ever overwritten.
set -eu

mkdir -p demo
out=$(mktemp -d "demo/$(date +%Y-%m-%d-%H%M)-XXXX")
echo "everything below is written to $out" >&2

step() { echo "\n== hlt-train $*" >&2; hlt-train "$@"; }

step toy "$out/jets.root" --kind jets -n 100k --seed 1
step toy "$out/events.root" --kind events -n 400k --seed 1

for kind in jets events; do
    case $kind in
        jets) files="--files jets=$out/jets.root" ;;
        events) files="--files hh=$out/events.root --files qcd=$out/events.root" ;;
    esac
    # shellcheck disable=SC2086  # one word per option
    step fit "toy_$kind" $files --run "$out/$kind-teacher" --for 10epochs --set model.widths=[128,128,64]
    step distil "$out/$kind-teacher" --run "$out/$kind-student" --for 20epochs --set model.widths=[40,16]
    step export "$out/$kind-student" --to cpp,onnx --out "$out/$kind-export"
done

for kind in jets events; do
    step evaluate "$out/$kind-teacher" "$out/$kind-student" "$out/$kind-export/cpp" "$out/$kind-export/onnx"
done
echo "\nthe header that a trigger includes: $out/events-export/cpp/net.hpp" >&2
