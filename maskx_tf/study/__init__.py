"""A declared comparison, run and reported: rows of tables × splits of the classes × seeds."""
