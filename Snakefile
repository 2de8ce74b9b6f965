# One rule a step, from images to the built book. `make book` calls it through
# `python -m paintlib book`; a cluster calls it directly: snakemake --executor slurm --config ...
import os
import sys
from pathlib import Path
from shlex import quote
from paintlib import checkpoints, steps, warm
from paintlib.experiment import Run

SETTINGS = {name: str(config.get(name, "")) for name in "limit tasks finetuned".split()}
run = Run.of(
    config.get("profile", "micro"),
    int(config.get("seed", 0)),
    limit=int(SETTINGS["limit"] or 0),
    tasks=SETTINGS["tasks"],
    finetuned=SETTINGS["finetuned"] or "own",
)
if workflow.is_main_process:  # not in the jobs that a cluster starts
    steps.check_inputs(run, Path(os.environ.get("PAINTLIB_DATA", "data")))
A, R, BOOK = run.artifacts, run.results, run.book
SUPPORTED, PATCHING, TASKS = run.profile.supported, run.profile.patching, run.profile.tasks
UP = "/".join([".."] * (len(BOOK.parts) + 1))  # from a page to here
SUMMARIES = "explore claims glance table1 figure1 figure2 tradeoffs steps solvers speed quasi_convexity open_questions published runbook".split()
SHOWN = [str(run.pictures), *[str(run.strip_of(task)) for task in run.profile.tasks]]
BENCH = sorted(map(str, Path("results/bench").glob("*.json")))
FURTHER = {  # what these pages read beyond the pairs
    "explore": ["paintlib/gallery.py", *SHOWN, *(str(run.predictions(t)) for t in PATCHING)],
    "published": ["book/published/vitb32_accuracy.csv", "paintlib/tasks/paper.py"],
    "solvers": ["paintlib/compare.py", *BENCH],
    "speed": BENCH,
    "tradeoffs": ["paintlib/tradeoff.py"],
    "runbook": ["paintlib/cost.py", *BENCH],
}
SUMMARIES += [] if run.profile.real else ["twins"]
PROSE = [*Path("book").glob("*.*"), *Path("book/chapters").glob("*.md"), *Path("book/_static").iterdir()]
PROSE = [*map(str, PROSE), "_config.yml", "paintlib/site.py", "paintlib/freshness.py"]
IMAGES = [str(run.images(task)) for task in TASKS]
HEADS = [str(run.zero_shot_head(task)) for task in TASKS]
BASELINE = [str(run.baseline(task)) for task in SUPPORTED]

GPU = int(run.profile.real)  # of each step that computes with the model
# measured peaks of the steps on a CPU, rounded up; of ViT-B/32, and of any other step and profile
MEMORY = {"finetune": 4000, "baseline": 4000, "curves": 6000, "pair": 4000} if run.profile.real else {}
SMALL = 1600  # MB
THREADS = " ".join(f"{name}={value}" for name, value in warm.THREADS.items())
PAINT = f"PYTHONPATH={quote(str(Path.cwd()))} {THREADS} {sys.executable} -m paintlib"
JUPYTER_BOOK = Path(sys.executable).with_name("jupyter-book")
CHOICES = {"profile": run.profile.name, "seed": run.seed, **SETTINGS}
RUN = " ".join(f"--{name} {quote(str(value))}" for name, value in CHOICES.items() if value != "")
PAGE_RUN = f"-p profile {run.profile.name} -p seed {run.seed} -p limit {run.profile.limit}"
PAGE_RUN += f" -p finetuned {run.source}"
TWINS = [f"paintlib/tasks/{m}.py" for m in "__init__ canvas figures micro scenery stencils textures".split()]
TRAINING = [f"paintlib/{m}.py" for m in "experiment models pixels profiles steps training".split()]
SCORING = [f"paintlib/{m}.py" for m in "interpolation losses metrics models pixels steps".split()]
PAGE = [f"paintlib/{m}.py" for m in "experiment pages plots results".split()]
SOLVER = [f"paintlib/{m}.py" for m in "fits solver".split()]
REAL = ["paintlib/checkpoints.py", "paintlib/tasks/__init__.py", "paintlib/tasks/paper.py"]
UPSTREAM = {*TRAINING, *SCORING, *(REAL if run.profile.real else TWINS)}


def made_from(wildcards, input):
    """Name the files whose digests a page keeps: all that git tracks, and what made the artifacts."""
    return sorted(UPSTREAM | {file for file in input if not file.startswith("artifacts/")})


def given_weights(patching):
    if run.source != "given":
        return []
    return [str(checkpoints.local_checkpoint(Path(run.finetuned), patching))]


wildcard_constraints:
    task="|".join(TASKS),
    supported="|".join(SUPPORTED),
    patching="|".join(PATCHING),
    summary="|".join(SUMMARIES),


rule book:
    input:
        expand(f"{BOOK}/pairs/{{s}}-{{p}}.ipynb", s=SUPPORTED, p=PATCHING),
        expand(f"{BOOK}/results/{{summary}}.ipynb", summary=SUMMARIES),
        f"{R}/timings.csv",
        PROSE,
    output:
        f"{BOOK}/_build/html/index.html",
    params:
        assemble=f"{PAINT} assemble {RUN} {BOOK} &&" if BOOK != Path("book") else "",
    shell:
        "{params.assemble} rm -f {output} && "
        "{JUPYTER_BOOK} build {BOOK} --all -W -n --keep-going -q"


if run.profile.real:

    rule decode:
        input:
            "paintlib/tasks/paper.py",
            "paintlib/pixels.py",
            lambda w: run.source_of(w.task),
        output:
            f"{A}/tasks/{{task}}.json",
        benchmark:
            f"{A}/benchmarks/decode.{{task}}.tsv"
        threads: 4
        shell:
            "{PAINT} decode {RUN} --workers {threads} {wildcards.task}"

    rule zero_shot:
        input:
            "paintlib/checkpoints.py",
            [file for file in [str(config.get("weights") or "")] if Path(file).is_file()],
        output:
            f"{A}/zero_shot.safetensors",
            f"{A}/text_tower.safetensors",
        params:
            weights=config.get("weights") or ("random" if run.profile.limit else "openai"),
        benchmark:
            f"{A}/benchmarks/zero_shot.tsv"
        shell:
            "{PAINT} zero_shot {RUN} --weights {params.weights:q}"

    rule head:
        input:
            "paintlib/models.py",
            "paintlib/tasks/__init__.py",
            f"{A}/text_tower.safetensors",
            f"{A}/tasks/{{task}}.json",
        output:
            f"{A}/heads/{{task}}.safetensors",
        benchmark:
            f"{A}/benchmarks/head.{{task}}.tsv"
        resources:
            gpu=GPU,
            mem_mb=MEMORY.get("head", SMALL),
        shell:
            "{PAINT} head {RUN} {wildcards.task}"

else:

    rule render:
        input:
            TWINS,
            "paintlib/profiles.py",
            "paintlib/steps.py",
        output:
            IMAGES,
        benchmark:
            f"{A}/benchmarks/render.tsv"
        shell:
            "{PAINT} render {RUN}"

    rule caption:
        input:
            TWINS,
            "paintlib/profiles.py",
            "paintlib/steps.py",
        output:
            str(run.captioned),
        benchmark:
            f"{A}/benchmarks/caption.tsv"
        shell:
            "{PAINT} caption {RUN}"

    rule pretrain:
        input:
            TWINS,
            TRAINING,
            str(run.captioned),
        output:
            f"{A}/zero_shot.safetensors",
            HEADS,
        benchmark:
            f"{A}/benchmarks/pretrain.tsv"
        threads: 2
        resources:
            mem_mb=SMALL,
        shell:
            "{PAINT} pretrain {RUN}"


rule describe:
    input:
        "paintlib/gallery.py",
        f"{A}/zero_shot.safetensors",
        HEADS,
        IMAGES,
    output:
        f"{R}/run.json",
        SHOWN,
    params:
        tasks=",".join(TASKS),  # a run of other tasks is another description
    shell:
        "{PAINT} describe {RUN}"


rule finetune:
    input:
        TRAINING,
        f"{A}/zero_shot.safetensors",
        f"{A}/heads/{{patching}}.safetensors",
        lambda w: run.images(w.patching),
        lambda w: given_weights(w.patching),
    output:
        f"{A}/fine_tuned/{{patching}}.safetensors",
    benchmark:
        f"{A}/benchmarks/finetune.{{patching}}.tsv"
    resources:
        gpu=GPU,
        mem_mb=MEMORY.get("finetune", SMALL),
    shell:
        "{PAINT} finetune {RUN} {wildcards.patching}"


rule baseline:
    input:
        SCORING,
        f"{A}/zero_shot.safetensors",
        f"{A}/heads/{{supported}}.safetensors",
        lambda w: run.images(w.supported),
    output:
        f"{A}/baseline/{{supported}}.safetensors",
    benchmark:
        f"{A}/benchmarks/baseline.{{supported}}.tsv"
    priority: 1  # all curves wait for it
    resources:
        gpu=GPU,
        mem_mb=MEMORY.get("baseline", SMALL),
    shell:
        "{PAINT} baseline {RUN} {wildcards.supported}"


rule curves:
    input:
        SCORING,
        "paintlib/gallery.py",
        f"{A}/fine_tuned/{{patching}}.safetensors",
        BASELINE,
    output:
        f"{A}/curves/{{patching}}.json",
        f"{A}/curves/{{patching}}.safetensors",
        f"{R}/predictions/{{patching}}.json",
    params:
        supported=",".join(SUPPORTED),
    benchmark:
        f"{A}/benchmarks/curves.{{patching}}.tsv"
    resources:
        gpu=GPU,
        mem_mb=MEMORY.get("curves", SMALL),
    shell:
        "{PAINT} curves {RUN} {wildcards.patching}"


rule pair:
    input:
        PAGE,
        SOLVER,
        "notebooks/pair.md",
        f"{A}/curves/{{patching}}.json",
        f"{A}/curves/{{patching}}.safetensors",
    output:
        f"{BOOK}/pairs/{{supported}}-{{patching}}.ipynb",
        f"{R}/pairs/{{supported}}-{{patching}}.json",
    params:
        title=lambda w: f"{run.profile.label(w.supported)} + {run.profile.label(w.patching)}",
        inputs=made_from,
    benchmark:
        f"{A}/benchmarks/pair.{{supported}}-{{patching}}.tsv"
    resources:
        gpu=GPU,
        mem_mb=MEMORY.get("pair", SMALL),
    shell:
        "{PAINT} page --failures {A}/failed notebooks/pair.md {output[0]} --title '{params.title}'"
        " -p root {UP} {PAGE_RUN}"
        " -p supported {wildcards.supported} -p patching {wildcards.patching}"
        " --inputs {params.inputs}"


rule summary:
    input:
        PAGE,
        "paintlib/metrics.py",
        SOLVER,
        f"{R}/run.json",
        expand(f"{R}/pairs/{{s}}-{{p}}.json", s=SUPPORTED, p=PATCHING),
        lambda w: FURTHER.get(w.summary, []),
        source="notebooks/{summary}.md",
    output:
        f"{BOOK}/results/{{summary}}.ipynb",
    params:
        inputs=made_from,
    benchmark:
        f"{A}/benchmarks/page.{{summary}}.tsv"
    shell:
        "{PAINT} page --failures {A}/failed {input.source} {output} -p results {UP}/{R}"
        " --inputs {params.inputs}"


rule status:
    input:
        expand(f"{BOOK}/pairs/{{s}}-{{p}}.ipynb", s=SUPPORTED, p=PATCHING),
        expand(f"{BOOK}/results/{{summary}}.ipynb", summary=SUMMARIES),
    output:
        f"{R}/timings.csv",
        f"{R}/versions.csv",
    shell:
        "{PAINT} status {RUN}"
