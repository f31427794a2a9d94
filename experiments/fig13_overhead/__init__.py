"""Fig. 13, 14 and Table 5: what gating costs a training step in time, memory and parameters."""

from experiments.common.experiment import Experiment
from experiments.fig13_overhead.judge import plots, summarise, tables, verdicts
from experiments.fig13_overhead.measure import Configuration, Run, cells, measure

SMOKE = Configuration((Run("linear", 16, 3, 2), Run("LeNet-300-100", 8, 3, 2)), warm_up=1)
CPU = Configuration(
    (
        *(Run("linear", n, 400, 8, compiled) for n in (32, 200) for compiled in (False, True)),
        *(Run("LeNet-300-100", n, 100, 6) for n in (32, 128, 256, 512)),
        Run("LeNet-300-100", 256, 100, 6, compiled=True),
        Run("VGG-16", 8, 12, 3), Run("VGG-16", 32, 8, 3), Run("VGG-16", 128, 5, 2),
        Run("VGG-16", 128, 5, 2, compiled=True, depths=(3,)),
        Run("NanoGPT", 2, 12, 3), Run("NanoGPT", 8, 8, 3), Run("NanoGPT", 32, 5, 2),
        Run("NanoGPT", 32, 5, 2, compiled=True, depths=(3,)),
    )
)  # fmt: skip
GPU = Configuration(
    tuple(
        Run(model, n, rounds, 6, compiled)
        for model, sizes, rounds in (
            ("linear", (32, 200, 1000), 200), ("LeNet-300-100", (32, 128, 256, 512, 2048), 200),
            ("VGG-16", (32, 128, 512), 40), ("NanoGPT", (8, 32, 64), 40),
        )
        for n in sizes for compiled in (False, True)
    )
)  # fmt: skip

EXPERIMENT = Experiment(
    name="fig13_overhead",
    title="Fig. 13, 14, Table 5: what gating costs",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": GPU, "paper": GPU},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    alone=True,
)
