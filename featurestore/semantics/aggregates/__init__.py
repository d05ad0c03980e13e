"""The algebra of aggregates: exact, order-free, one code for training sets and look-ups (W4-W6).

Declaring an aggregate needs `AggregateSpec` alone, which is cheap to import. The rooms that compute
load NumPy and Arrow when they are imported, which the first call of `algebra` does.
"""

from featurestore.semantics.aggregates.algebras import algebra
from featurestore.semantics.aggregates.interface import Algebra, Events, Plan, States
from featurestore.semantics.aggregates.spec import FUNCTIONS, AggregateSpec

__all__ = ["FUNCTIONS", "AggregateSpec", "Algebra", "Events", "Plan", "States", "algebra"]
