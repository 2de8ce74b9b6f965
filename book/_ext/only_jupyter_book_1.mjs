console.error(
  "This book needs Jupyter Book 1; Jupyter Book 2 would build nothing of it. Give instead\n" +
    "  make env && .venv/bin/jupyter-book build book/\n" +
    "or, for the pages alone,\n" +
    "  pip install 'jupyter-book<2' vl-convert-python sphinx-mathjax-offline",
);
process.exit(1);
