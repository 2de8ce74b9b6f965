# One rule a step, from rendering to the built book. `make book` calls it through
# `python -m paintlib book`; a cluster calls it directly: snakemake --executor slurm --config ...
import sys
from pathlib import Path
from paintlib.experiment import Run

PROFILE = config.get("profile", "micro")
SEED = int(config.get("seed", 0))
run = Run.of(PROFILE, SEED)
A, R = run.artifacts, run.results
# micro at seed 0 is the committed book; any other run gets a book of its own
BOOK = "book" if run.name == "micro" else f"{A}/book"
UP = "/".join([".."] * (BOOK.count("/") + 2))  # from a page to here
SUMMARIES = "claims table1 figure1 figure2 quasi_convexity open_questions twins".split()
PROSE = [*map(str, [*Path("book").glob("*.*"), *Path("book/chapters").glob("*.md")]), "_config.yml"]
SUPPORTED, PATCHING = run.profile.supported, run.profile.patching

# a short spin: threads that wait for long starve whatever else runs on the machine
PAINT = f"PYTHONPATH={Path.cwd()} OMP_NUM_THREADS=1 GOMP_SPINCOUNT=3000 {sys.executable} -m paintlib"
JUPYTER_BOOK = Path(sys.executable).with_name("jupyter-book")
RUN = f"--profile {PROFILE} --seed {SEED}"
TASKS = [f"paintlib/tasks/{m}.py" for m in "canvas figures micro scenery stencils textures".split()]
TRAINING = [f"paintlib/{m}.py" for m in "experiment models profiles training".split()]
SCORING = [f"paintlib/{m}.py" for m in "experiment interpolation losses metrics models".split()]
PAGE = [f"paintlib/{m}.py" for m in "pages plots results".split()]


wildcard_constraints:
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
        assemble=f"{PAINT} assemble {RUN} {BOOK} &&" if BOOK != "book" else "",
    shell:
        "{params.assemble} rm -f {output} && "
        "{JUPYTER_BOOK} build {BOOK} --all -W -n --keep-going -q"


rule render:
    input:
        TASKS,
        "paintlib/experiment.py",
        "paintlib/profiles.py",
    output:
        expand(f"{A}/tasks/{{task}}.safetensors", task=run.profile.tasks),
    benchmark:
        f"{A}/benchmarks/render.tsv"
    shell:
        "{PAINT} render {RUN}"


rule pretrain:
    input:
        TASKS,
        TRAINING,
    output:
        f"{A}/zero_shot.safetensors",
        f"{A}/heads.safetensors",
    benchmark:
        f"{A}/benchmarks/pretrain.tsv"
    threads: 2
    shell:
        "{PAINT} pretrain {RUN}"


rule describe:
    input:
        f"{A}/zero_shot.safetensors",
    output:
        f"{R}/run.json",
    shell:
        "{PAINT} describe {RUN}"


rule finetune:
    input:
        TRAINING,
        f"{A}/zero_shot.safetensors",
        f"{A}/heads.safetensors",
        f"{A}/tasks/{{patching}}.safetensors",
    output:
        f"{A}/fine_tuned/{{patching}}.safetensors",
    benchmark:
        f"{A}/benchmarks/finetune.{{patching}}.tsv"
    shell:
        "{PAINT} finetune {RUN} {wildcards.patching}"


rule curves:
    input:
        SCORING,
        f"{A}/fine_tuned/{{patching}}.safetensors",
    output:
        f"{A}/curves/{{patching}}.json",
    benchmark:
        f"{A}/benchmarks/curves.{{patching}}.tsv"
    shell:
        "{PAINT} curves {RUN} {wildcards.patching}"


rule pair:
    input:
        PAGE,
        "paintlib/solver.py",
        "notebooks/pair.md",
        f"{A}/curves/{{patching}}.json",
    output:
        f"{BOOK}/pairs/{{supported}}-{{patching}}.ipynb",
        f"{R}/pairs/{{supported}}-{{patching}}.json",
    params:
        title=lambda w: f"{run.label(w.supported)} + {run.label(w.patching)}",
    benchmark:
        f"{A}/benchmarks/pair.{{supported}}-{{patching}}.tsv"
    shell:
        "{PAINT} page --failures {A}/failed notebooks/pair.md {output[0]} --title '{params.title}'"
        " -p root {UP} -p profile {PROFILE} -p seed {SEED}"
        " -p supported {wildcards.supported} -p patching {wildcards.patching}"


rule summary:
    input:
        PAGE,
        "paintlib/metrics.py",
        "paintlib/solver.py",
        f"{R}/run.json",
        expand(f"{R}/pairs/{{s}}-{{p}}.json", s=SUPPORTED, p=PATCHING),
        source="notebooks/{summary}.md",
    output:
        f"{BOOK}/results/{{summary}}.ipynb",
    benchmark:
        f"{A}/benchmarks/page.{{summary}}.tsv"
    shell:
        "{PAINT} page --failures {A}/failed {input.source} {output} -p results {UP}/{R}"


rule status:
    input:
        expand(f"{BOOK}/pairs/{{s}}-{{p}}.ipynb", s=SUPPORTED, p=PATCHING),
        expand(f"{BOOK}/results/{{summary}}.ipynb", summary=SUMMARIES),
    output:
        f"{R}/timings.csv",
        f"{R}/versions.csv",
    shell:
        "{PAINT} status {RUN}"
