"""Code that a model writes runs here: in a virtual machine that is thrown away."""
