# One rule a step: `make book` calls it, a cluster `snakemake book --executor slurm --config profile=paper data=FOLDER ...`
import os
import subprocess
import sys
from pathlib import Path
from shlex import quote

from experiment import locks
from experiment.__main__ import CHOICES
from experiment.run import OF_NO_RUN, Run
from experiment.sources import kept, page, prose, step

SETTINGS = {name: str(config.get(name) or "") for name in CHOICES}
FRESH = int(config.get("images") or 0)  # test images a task, for the evidence
DATA, WEIGHTS = str(config.get("data") or "data"), str(config.get("weights") or "")
run = Run.of(config.get("profile", "micro"), int(str(config.get("seed", 0))),
             **SETTINGS | {name: int(SETTINGS[name] or 0) for name in ("limit", "sample")})
A, R, BOOK, REAL = run.folder, run.results, run.book, run.profile.real
SITE = f"{BOOK}/_build/html/index.html"
SUPPORTED, PATCHING, TASKS = run.profile.supported, run.profile.patching, run.profile.tasks
JOINED = [str(run.joint(i, kind)) for i in range(len(run.profile.trios)) for kind in ("json", "npz")]
LEFT_OUT = {"pair", "own_curves", *OF_NO_RUN} | ({"twins"} if REAL else set()) | (set() if JOINED else {"joint"})
SUMMARIES = {file.stem for file in Path("notebooks").glob("*.md")} - LEFT_OUT

# GPU of each step with the model, MB: measured peaks on a CPU, of ViT-B/32 and of anything smaller
GPU, MODEL, SMALL = int(REAL), 4000 if REAL else 1600, 1600
# what thread pools read while they load; threads that spin for long starve whatever else runs
THREADS = "OMP_NUM_THREADS=1 GOMP_SPINCOUNT=3000"
STEP = f"{locks.RUN}={os.getpid()} PYTHONPATH={quote(os.getcwd())} {THREADS} {quote(sys.executable)} -m experiment"
NAMED = {"profile": run.profile.name, "seed": run.seed, **SETTINGS}
RUN = " ".join(f"--{name.replace('_', '-')} {quote(str(said))}" for name, said in NAMED.items() if said != "")

if workflow.is_main_process:  # not in the jobs that a cluster starts
    lock = locks.claim_folder(Path())
    check = f"{STEP} check {RUN} --data {quote(DATA)} --weights {quote(WEIGHTS)} --images {FRESH} && {STEP} estimate {RUN}"
    if REAL and subprocess.run(check, shell=True).returncode:
        sys.exit(1)
onstart: locks.end_steps_at_sigterm()

IMAGES, HEADS = ([str(file(task)) for task in TASKS] for file in (run.images, run.head))
DESCRIBED = [f"{R}/run.json", f"{R}/pictures/tasks.json"]
SOLVED = expand(f"{R}/pairs/{{s}}-{{p}}.json", s=SUPPORTED, p=PATCHING)
SOLVED += [str(file(task)) for file in (run.evaluations, run.predictions) for task in PATCHING]
PAGES = expand(f"{BOOK}/pairs/{{s}}-{{p}}.ipynb", s=SUPPORTED, p=PATCHING)
PAGES += expand(f"{BOOK}/results/{{summary}}.ipynb", summary=sorted(SUMMARIES))

wildcard_constraints: task="|".join(TASKS), patching="|".join(PATCHING), summary="|".join(SUMMARIES)

rule book:  # the pages too: Snakemake misses no file but those that are asked for
    input: index=SITE, pages=PAGES
    shell: "echo 'the book is at' $(realpath {input.index})"

rule site:
    input: PAGES, f"{R}/provenance.json", prose()
    output: SITE
    params: build=Path(sys.executable).with_name("jupyter-book")
    shell: "{STEP} assemble {RUN} && {params.build} build {BOOK} --all -W -n --keep-going -q"

if REAL:
    rule decode:
        input: step("decode"), lambda w: run.source_of(w.task)
        output: f"{A}/tasks/{{task}}.json"
        benchmark: f"{A}/benchmarks/decode.{{task}}.tsv"
        threads: 4
        shell: "{STEP} decode {RUN} --data {DATA:q} --workers {threads} {wildcards.task}"

    rule zero_shot:
        input: step("zero_shot"), [WEIGHTS] if Path(WEIGHTS).is_file() else []
        output: f"{A}/zero_shot.safetensors", f"{A}/text_tower.safetensors"
        params: weights=WEIGHTS or ("random" if run.profile.limit else "openai")
        benchmark: f"{A}/benchmarks/zero_shot.tsv"
        shell: "{STEP} zero_shot {RUN} --weights {params.weights:q}"

    rule head:
        input: step("head"), f"{A}/text_tower.safetensors", f"{A}/tasks/{{task}}.json"
        output: f"{A}/heads/{{task}}.safetensors"
        benchmark: f"{A}/benchmarks/head.{{task}}.tsv"
        resources: gpu=GPU, mem_mb=SMALL
        shell: "{STEP} head {RUN} {wildcards.task}"

    rule verify:  # accuracies, against published ones
        input: step("verify"), f"{A}/{{kind}}/{{task}}.safetensors", "book/published/vitb32_accuracy.csv"
        output: f"{A}/verified/{{kind}}/{{task}}.json"
        resources: gpu=GPU, mem_mb=SMALL
        shell: "{STEP} verify {RUN} {wildcards.kind} {wildcards.task}"

else:
    rule render:
        input: step("render")
        output: IMAGES
        benchmark: f"{A}/benchmarks/render.tsv"
        shell: "{STEP} render {RUN}"

    rule caption:
        input: step("caption")
        output: run.captioned
        benchmark: f"{A}/benchmarks/caption.tsv"
        shell: "{STEP} caption {RUN}"

    rule pretrain:
        input: step("pretrain"), run.captioned
        output: f"{A}/zero_shot.safetensors", HEADS
        benchmark: f"{A}/benchmarks/pretrain.tsv"
        threads: 2
        resources: mem_mb=SMALL
        shell: "{STEP} pretrain {RUN}"

rule describe:
    input: step("describe"), f"{A}/zero_shot.safetensors", HEADS, IMAGES
    output: DESCRIBED
    params: tasks=",".join(TASKS)  # a run of other tasks is another description
    resources: gpu=GPU  # it takes one, as all that have a session
    shell: "{STEP} describe {RUN}"

rule finetune:
    input: step("finetune"), f"{A}/zero_shot.safetensors", f"{A}/heads/{{patching}}.safetensors",
        lambda w: [run.images(w.patching), *run.given(w.patching), *run.verified("heads", w.patching)]
    output: f"{A}/fine_tuned/{{patching}}.safetensors"
    benchmark: f"{A}/benchmarks/finetune.{{patching}}.tsv"
    resources: gpu=GPU, mem_mb=MODEL
    shell: "{STEP} finetune {RUN} {wildcards.patching}"

rule baseline:
    input: step("baseline"), f"{A}/zero_shot.safetensors", [run.head(task) for task in SUPPORTED],
        [run.images(task) for task in SUPPORTED], run.verified("heads", *SUPPORTED)
    output: [run.baseline(task) for task in SUPPORTED]
    benchmark: f"{A}/benchmarks/baseline.tsv"
    priority: 1  # all paths wait for it
    resources: gpu=GPU, mem_mb=MODEL
    shell: "{STEP} baseline {RUN} {SUPPORTED}"

rule solve:
    input: step("solve"), "experiment/pair.schema.json", lambda w: run.verified("fine_tuned", w.patching),
        f"{A}/fine_tuned/{{patching}}.safetensors", [run.baseline(task) for task in SUPPORTED],
    output: expand(f"{R}/pairs/{{s}}-{{{{patching}}}}.json", s=SUPPORTED),
        f"{R}/evaluations/{{patching}}.npz", f"{R}/predictions/{{patching}}.json",
    params: supported=",".join(SUPPORTED)
    benchmark: f"{A}/benchmarks/solve.{{patching}}.tsv"
    resources: gpu=GPU, mem_mb=MODEL
    shell: "{STEP} solve {RUN} {wildcards.patching}"

rule pair:
    input: page("notebooks/pair.md"), f"{R}/run.json", f"{R}/evaluations/{{patching}}.npz",
        expand(f"{R}/pairs/{{s}}-{{{{patching}}}}.json", s=SUPPORTED),
    output: expand(f"{BOOK}/pairs/{{s}}-{{{{patching}}}}.ipynb", s=SUPPORTED)
    params: supported=",".join(SUPPORTED)
    benchmark: f"{A}/benchmarks/pair.{{patching}}.tsv"
    shell: "{STEP} pair {RUN} {wildcards.patching}"

rule summary:
    input: lambda w: page(f"notebooks/{w.summary}.md"), DESCRIBED, SOLVED,
        lambda w: JOINED if w.summary == "joint" else [],
        Path("results/bench").glob("*.json"), Path("book/published").glob("*"),
        lambda w: Path("results/micro").rglob("*.json") if w.summary == "reference" else kept(),
    output: f"{BOOK}/results/{{summary}}.ipynb"
    params: evidence=[file.stat().st_mtime for file in sorted(R.glob("evidence/*.json"))]  # of the run itself
    benchmark: f"{A}/benchmarks/page.{{summary}}.tsv"
    shell: "{STEP} page {RUN} notebooks/{wildcards.summary}.md {output} -p results ../../results/{run.name}"

rule join:
    input: step("join"), f"{A}/zero_shot.safetensors", HEADS, IMAGES,
        lambda w: [run.fine_tuned(task) for task in run.profile.trios[int(w.number)][1:]],
    output: f"{R}/joint/{{number}}.json", f"{R}/joint/{{number}}.npz"
    benchmark: f"{A}/benchmarks/join.{{number}}.tsv"
    resources: gpu=GPU, mem_mb=MODEL
    shell: "{STEP} join {RUN} {wildcards.number}"

rule provenance:
    input: PAGES, SOLVED
    output: f"{R}/provenance.json"
    shell: "{STEP} provenance {RUN}"

rule measure:  # for the evidence
    input: step("measure"), f"{A}/fine_tuned/{{patching}}.safetensors", HEADS, f"{R}/evaluations/{{patching}}.npz"
    output: f"{R}/evidence/{{patching}}.json"
    params: images=FRESH
    benchmark: f"{A}/benchmarks/measure.{{patching}}.tsv"
    resources: gpu=GPU, mem_mb=MODEL
    shell: "{STEP} measure {RUN} --images {params.images} {wildcards.patching}"

rule resample:
    input: step("resample"), f"{R}/evidence/{{patching}}.json"
    output: f"{R}/samples/{{patching}}.json"
    shell: "{STEP} resample {RUN} {wildcards.patching}"

rule solved:  # all numbers, no pages
    input: DESCRIBED, SOLVED

rule evidence:
    input: DESCRIBED, SOLVED, [(run.samples if FRESH else run.evidence)(task) for task in PATCHING]

rule complete:  # every normalisation, for the reference
    input: f"{R}/evaluations/{{patching}}.npz"
    output: f"{A}/complete/{{patching}}.npz"
    resources: gpu=GPU, mem_mb=MODEL
    shell: "{STEP} complete {RUN} {wildcards.patching}"

rule reference:  # for maintainers: the committed results and pages, from this run
    input: SITE, expand(f"{A}/complete/{{p}}.npz", p=PATCHING)
    shell: "{STEP} reference {RUN}"
