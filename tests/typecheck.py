"""The run-time type checker that the suite puts on every function of drivekd."""

from beartype import BeartypeConf, beartype

# The numeric tower lets an int stand where a float is asked for, as mypy does.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
