"""Fig. 7: attention heads of a character model, and characters a second of the compact ones."""

from experiments.common.experiment import Experiment
from experiments.fig07_heads.judge import plots, summarise, tables, verdicts
from experiments.fig07_heads.measure import Configuration, cells, measure

METHODS = (
    "values, D = 2", "values, D = 3", "values, D = 4", "values, direct", "heads, D = 3", "heads and neurons, D = 3",
    "heads and neurons, direct",
)  # fmt: skip
SMOKE = Configuration(
    text="counting", methods=("values, D = 3", "values, direct", "heads and neurons, D = 3"), lams=(0.1, 0.3),
    length=16, width=16, layers=2, heads=4, dropout=0.0, steps=60, lr=3e-2, excerpts=16, ratios=(0.5,), repeats=1,
)  # fmt: skip
CPU = Configuration(
    text="tinyshakespeare", methods=METHODS, lams=(1e-3, 1e-2, 3e-2, 0.1, 0.3, 3.0), length=64, width=96, layers=4,
    heads=8, steps=1000, lr=3e-3, excerpts=500, ratios=(0.1, 0.3, 0.5, 0.7, 0.9),
)  # fmt: skip
GPU = Configuration(
    text="tinyshakespeare", methods=METHODS, lams=(1e-3, 1e-2, 0.1, 0.3, 3.0), bfloat16=True,
    ratios=(0.1, 0.3, 0.5, 0.7, 0.9),
)  # fmt: skip

EXPERIMENT = Experiment(
    name="fig07_heads",
    title="Fig. 7: attention heads of a character model",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": GPU, "paper": Configuration(methods=METHODS)},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: () if c.text == "counting" else (c.text,),
)
