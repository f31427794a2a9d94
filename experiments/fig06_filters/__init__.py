"""Fig. 6, 11, 12, 15 (right) and Table 1: filters of VGG-16 and ResNet-18, and how fast the compact networks are."""

from experiments.common.convnets import VGG16
from experiments.common.experiment import Experiment
from experiments.fig06_filters.judge import plots, summarise, tables, verdicts
from experiments.fig06_filters.measure import PAPER_TASKS, Configuration, Task, cells, measure

GATES = (0.02, 0.04, 0.07, 0.1, 0.15)  # of plain filters at D = 3 and 4
UNITS = (0.01, 0.015, 0.02, 0.03, 0.04)  # of filters with their norms
# a grid for each method: the penalties differ in scale
ALL = {
    "coupled, D = 3": UNITS, "coupled, D = 4": UNITS, "filters, D = 3": GATES,
    "coupled, direct": (0.005, 0.01, 0.015, 0.02, 0.03), "filters, direct": (0.002, 0.005, 0.01, 0.02, 0.04),
    "scales, direct": (0.003, 0.01, 0.02, 0.03, 0.04), "torch-pruning": (0.001, 0.002, 0.003, 0.005, 0.01),
}  # fmt: skip
ONCE = {
    "filters, D = 2": (0.04, 0.1, 0.15, 0.3, 0.5), "filters, D = 4": GATES,
    "norms, D = 3": UNITS, "coupled, anchored D = 3": (0.1, 0.4), "coupled, priced D = 3": UNITS[:4],
    "filters, D = 6": GATES[1:4], "filters, D = 8": GATES[1:4],
}  # fmt: skip

SMOKE = Configuration(
    tasks=(Task("VGG, digits", "digits", ((4,), (8,)), hidden=16, lr=0.05, held_out=300),),
    grids=dict.fromkeys(("filters, D = 3", "coupled, D = 3", "coupled, anchored D = 3", "scales, direct"), (0.05,)),
    epochs=2, augment=False, ratios=(0.5,), latency_batch=8, repeats=1,
)  # fmt: skip
RESNET = {
    "coupled, D = 3": (0.001, 0.002, 0.004, 0.007, 0.012),
    "filters, D = 3": (0.005, 0.01, 0.02, 0.03, 0.04),
    "coupled, direct": (0.002, 0.005, 0.01, 0.015, 0.02),
    "filters, direct": (0.001, 0.003, 0.006, 0.01, 0.02),
    "scales, direct": (0.002, 0.005, 0.01, 0.015, 0.02),
    "torch-pruning": (3e-4, 1e-3, 2e-3, 3e-3, 4e-3),
    "coupled, priced D = 3": (0.004, 0.007, 0.01, 0.013),
    "coupled, priced direct": (0.002, 0.004, 0.006, 0.009),
    "coupled, quick D = 3": (0.001, 0.002, 0.003, 0.004),
}
CPU = Configuration(
    tasks=(
        Task("VGG, Fashion-MNIST", "fashion_mnist", ((32, 32), (64, 64), (128, 128)), hidden=128, rows=8000, pool=2),
        Task("ResNet-18, CIFAR-10", "cifar10_30k", widths=(8, 16, 32, 64), pool=2, epochs=8,
             grids=tuple(RESNET.items()), seeds=(0,)),
    ),
    grids=ALL | ONCE, once=tuple(ONCE), seeds=(0, 1), epochs=20, augment=False,
    ratios=(0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95), latency_batch=256,
)  # fmt: skip
GPU_LR = ((2, 0.3), (3, 0.4), (4, 0.4))
GPU = Configuration(
    tasks=(Task("VGG-16, CIFAR-10 of 30,000", "cifar10_30k", VGG16, gated_lr=GPU_LR),),
    grids={
        "filters, D = 3": (5e-4, 1e-3, 2e-3), "coupled, D = 3": (2e-4, 5e-4, 1e-3),
        "filters, direct": (5e-5, 2e-4, 5e-4), "scales, direct": (5e-5, 2e-4, 5e-4),
    },
    epochs=40, bfloat16=True, ratios=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
)  # fmt: skip
WIDE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
PAPER = Configuration(tasks=PAPER_TASKS, grids=dict.fromkeys(ALL | ONCE, WIDE), seeds=(0, 1, 2),
                      once=("filters, D = 6", "filters, D = 8"))  # fmt: skip

EXPERIMENT = Experiment(
    name="fig06_filters",
    title="Fig. 6, 11, 12, 15, Table 1: convolutional filters",
    configurations={"smoke": SMOKE, "cpu": CPU, "gpu": GPU, "paper": PAPER},
    cells=cells,
    measure=measure,
    summarise=summarise,
    verdicts=verdicts,
    tables=tables,
    plots=plots,
    datasets=lambda c: sorted({task.dataset for task in c.tasks}),
)
