"""Recipes and studies of the laboratory; `ossicle.recipes` finds them by name, such as ``lab/contr-cos-all``."""
