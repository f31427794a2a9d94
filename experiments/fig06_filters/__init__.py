"""Fig. 6, 11, 12 and Tables 1, 4: filters of VGG-16 and ResNet-18, and how fast the compact networks are."""

from experiments.common.convnets import VGG16
from experiments.common.experiment import Experiment
from experiments.fig06_filters.judge import plots, summarise, tables, verdicts
from experiments.fig06_filters.measure import PAPER_TASKS, Configuration, Task, cells, measure

METHODS = (
    "magnitude", "direct", "slimming", "filters, D = 2", "filters, D = 3", "filters, D = 4", "norms, D = 3",
    "coupled, D = 3", "coupled, D = 4", "anchored, D = 3",
)  # fmt: skip
SMOKE = Configuration(
    tasks=(Task("VGG, digits", "digits", ((4,), (8,)), hidden=16, lr=0.05),),
    methods=("magnitude", "slimming", "filters, D = 3", "coupled, D = 3", "anchored, D = 3"), lams=(0.05,), epochs=2,
    augment=False, ratios=(0.5,), latency_batch=8, repeats=1,
)  # fmt: skip
CPU = Configuration(
    tasks=(
        Task("VGG, Fashion-MNIST", "fashion_mnist", ((16, 16), (32, 32), (64, 64)), hidden=64, rows=8000, pool=2),
        Task("ResNet-18, CIFAR-10", "cifar10_30k", widths=(8, 16, 32, 64), rows=8000, pool=2),
    ),
    methods=METHODS, lams=(1e-3, 3e-3, 1e-2, 3e-2, 0.1), epochs=20, augment=False,
    ratios=(0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
)  # fmt: skip
GPU = Configuration(
    tasks=(Task("VGG-16, CIFAR-10 of 30,000", "cifar10_30k", VGG16, gated_lr=((2, 0.3), (3, 0.4), (4, 0.4))),),
    methods=METHODS, lams=(1e-4, 3e-4, 1e-3, 3e-3), epochs=40, bfloat16=True,
)  # fmt: skip
PAPER = Configuration(
    tasks=PAPER_TASKS, methods=METHODS, lams=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1), seeds=(0, 1, 2)
)

EXPERIMENT = Experiment(
    name="fig06_filters",
    title="Fig. 6, 11, 12, Table 1: convolutional filters",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": GPU, "paper": PAPER},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: sorted({task.dataset for task in c.tasks}),
)
