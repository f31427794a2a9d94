"""Two threads that compact, find groups and export at the same time do not meet inside ``torch.export``."""

import subprocess
import sys

CALLS = {
    "compact": "dg.compact(net(), x)",
    "graph": "dg.compact(net(), x, target='graph')",
    "coupled": "dg.coupled(net(), x)",
    "export": "dg.export(net(), x, f'{folder}/{i}.pt2')",
    "profile": "dg.profile(net(), x)",
}

SCRIPT = """
import sys, tempfile, threading, traceback, warnings
import torch, dgating as dg
from torch import nn
warnings.simplefilter("error")
torch.set_num_threads(1)
x = torch.randn(3, 6)
folder = tempfile.mkdtemp()
failed = []
barrier = threading.Barrier(2)

def net():
    made = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))
    with torch.no_grad():
        made[0].weight[:4] = 0
        made[0].bias[:4] = 0
    return made

def work(i):
    for call in CALLS:
        try:
            barrier.wait(60)
            eval(call, globals(), {"i": i})
        except Exception as error:
            failed.append(f"{call}: {type(error).__name__}: {error}")

threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(90)
print(failed)
sys.exit(bool(failed) or any(thread.is_alive() for thread in threads))
"""


def test_two_threads_at_the_same_time():
    calls = list(CALLS.values())
    script = SCRIPT.replace("for call in CALLS:", f"for call in [*{calls}[i:], *{calls}[:i]]:")  # out of step
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
