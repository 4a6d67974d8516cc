"""Studies: several methods under one budget, each trained and then attacked."""
