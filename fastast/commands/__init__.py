"""The commands of `fastast`: the arguments of each, and the function that runs it."""
