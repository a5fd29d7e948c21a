"""How much of the teacher a cache gives back: its answers, the loss, and the gradients that a student receives."""

from kdcache.fidelity.measure import FEW_SAMPLES as FEW_SAMPLES
from kdcache.fidelity.measure import measure_fidelity as measure_fidelity
