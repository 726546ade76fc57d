"""What a recipe costs before it is paid: `tutelage show RECIPE --cost`."""

from tutelage.workflows.costing.network import main_network, precision_of
from tutelage.workflows.costing.stages import largest_pass
from tutelage.workflows.costing.summary import SIZES, Costs, costs_of, scaled

__all__ = ["SIZES", "Costs", "costs_of", "largest_pass", "main_network", "precision_of", "scaled"]
