"""Configure: takes a source folder, fragments and an output folder, gives a configuration.

The kernel's own `conf`, run through make, writes `.config`; kconfiglib says beforehand what will happen and
afterwards why. Never touches the source folder, and never lets a request that did not take effect pass in silence.
"""
