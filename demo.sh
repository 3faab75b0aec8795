#!/bin/sh
# The whole way on generated data: toy files -> teacher -> fixed-point student -> C++ and ONNX, verified bit for bit -> one table.
# Run by `make demo`; every run makes a new folder under demo/, nothing is ever overwritten.
set -eu

mkdir -p demo
out=$(mktemp -d "$PWD/demo/$(date +%Y-%m-%d-%H%M)-XXXX")
cd "$out"
printf 'everything below is written to %s\n' "$out" >&2

step() {
    printf '\n$ hlt-train %s\n' "$*" >&2
    hlt-train "$@"
}

step toy jets.root --kind jets -n 100k --seed 1
step toy events.root --kind events -n 400k --seed 1

step fit toy_jets --files jets=jets.root --run jets-teacher --for 10epochs --set model.widths=[128,128,64]
step fit toy_events --files hh=events.root --files qcd=events.root --run events-teacher --for 10epochs --set model.widths=[128,128,64]

for kind in jets events; do
    step distil $kind-teacher --run $kind-student --for 20epochs --set model.widths=[40,16]
    step export $kind-student --to cpp,onnx --out $kind-export
    step evaluate --json $kind-teacher $kind-student $kind-export/cpp $kind-export/onnx >$kind-evaluation.json
done

printf '\n' >&2
python - <<'END'
import json
from pathlib import Path
from hlt_train.report.evaluation import brief

print(brief([json.loads(Path(f"{kind}-evaluation.json").read_text()) for kind in ("jets", "events")]))
END
printf '\nall tables:                      cd %s && hlt-train evaluate events-teacher events-student events-export/cpp\n' "$out"
printf 'the header that a trigger loads: %s/events-export/cpp/net.hpp\n' "$out"
