"""Fig. 7: attention heads of a character model, and characters a second of the compact ones."""

from experiments.common.experiment import Experiment
from experiments.fig07_heads.judge import plots, summarise, tables, verdicts
from experiments.fig07_heads.measure import Configuration, cells, measure

VALUES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)
UNITS = (3e-4, 1e-3, 2e-3, 4e-3, 1e-2)
CPU_GRIDS = {
    "values, D = 3": VALUES, "heads and neurons, D = 3": UNITS, "values, direct": (1e-3, 1e-2, 0.1, 1.0, 10.0),
    "heads and neurons, direct": UNITS, "values, D = 2": VALUES, "values, D = 4": VALUES, "heads, D = 3": VALUES,
    "heads and neurons, quick D = 3": (3e-5, 1e-4, 3e-4, 1e-3, 2e-3),
    "values, quick D = 3": (1e-4, 3e-4, 1e-3, 2e-3, 4e-3),
}  # fmt: skip
WIDE = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0, 100.0)  # the ends are the paper's
SMOKE = Configuration(
    grids=(("values, D = 3", (0.1, 0.3)), ("values, direct", (0.3,)), ("heads and neurons, D = 3", (0.3,))),
    text="counting", length=16, width=16, layers=2, heads=4, dropout=0.0, steps=30, lr=3e-2, excerpts=16, ratios=(0.5,),
    repeats=1,
)  # fmt: skip
CPU = Configuration(
    grids=tuple(CPU_GRIDS.items()), text="tinyshakespeare", length=64, width=96, layers=4, heads=8, dropout=0.0,
    steps=1000, lr=3e-3, excerpts=500, ratios=(0.1, 0.3, 0.5, 0.7, 0.9),
)  # fmt: skip
GPU = Configuration(
    grids=tuple(CPU_GRIDS.items()), text="tinyshakespeare", bfloat16=True, ratios=(0.1, 0.3, 0.5, 0.7, 0.9)
)
PAPER = Configuration(grids=tuple(dict.fromkeys(CPU_GRIDS, WIDE).items()))

EXPERIMENT = Experiment(
    name="fig07_heads",
    title="Fig. 7: attention heads of a character model",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": GPU, "paper": PAPER},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: () if c.text == "counting" else (c.text,),
)
