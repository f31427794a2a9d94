"""Fig. 13, 14 and Table 5: what gating costs a training step in time, memory and parameters."""

from experiments.common.experiment import Experiment
from experiments.fig13_overhead.judge import plots, summarise, tables, verdicts
from experiments.fig13_overhead.measure import Configuration, cells, measure

SMOKE = Configuration(batches=(("linear", 16, 3), ("LeNet-300-100", 8, 3)))
CPU = Configuration(
    batches=(
        *(("linear", n, 300) for n in (32, 200)), *(("LeNet-300-100", n, 200) for n in (32, 128, 512)),
        ("VGG-16", 8, 10), ("VGG-16", 32, 10), ("NanoGPT", 2, 10), ("NanoGPT", 8, 10),
    ),
    compiled=("LeNet-300-100",),
)  # fmt: skip
GPU = Configuration(
    batches=(
        *(("linear", n, 300) for n in (32, 200)), *(("LeNet-300-100", n, 300) for n in (32, 128, 256, 512, 2048)),
        *(("VGG-16", n, 100) for n in (32, 128, 512)), *(("NanoGPT", n, 60) for n in (8, 32, 64)),
    ),
    compiled=("LeNet-300-100", "VGG-16", "NanoGPT"),
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
)
