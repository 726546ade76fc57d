"""`python -m tutelage` is the console script."""

from tutelage.cli import entry

entry()
