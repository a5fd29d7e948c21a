"""The loss: its terms by definition (`terms`), and their fast sum (`distillation`)."""

from kdcache.losses.distillation import KnowledgeDistillationLoss as KnowledgeDistillationLoss
from kdcache.losses.terms import LossTerms as LossTerms
from kdcache.losses.terms import Term as Term
from kdcache.losses.terms import cross_entropy as cross_entropy
from kdcache.losses.terms import feature_distance as feature_distance
from kdcache.losses.terms import kd_divergence as kd_divergence
from kdcache.losses.terms import pseudo_cross_entropy as pseudo_cross_entropy
