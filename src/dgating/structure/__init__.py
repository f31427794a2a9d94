"""The structure engine: which slices of which weights belong together, and which can leave without a change.

``capture`` exports the model; ``Engine`` walks the graph with the op rules of ``rules/`` and learns labels, known
values and uses; ``solve`` finds what is dead; ``slices_of`` and ``changes`` say what that means for weights and code.
"""
