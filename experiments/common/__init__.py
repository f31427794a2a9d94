"""What the experiments share: the runner, the report, networks, training, baselines."""
