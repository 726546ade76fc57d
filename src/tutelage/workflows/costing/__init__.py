"""What a recipe costs before it is paid: `tutelage show RECIPE --cost`."""

from tutelage.workflows.costing.network import main_network, precision_of
from tutelage.workflows.costing.summary import Costs, costs_of

__all__ = ["Costs", "costs_of", "main_network", "precision_of"]
