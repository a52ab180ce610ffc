"""Episodes, settings and patches of the environments of clicks."""
