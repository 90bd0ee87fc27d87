"""MBRM fitted to a finished model (paper, Sec. 3.3 and 3.4), and what its choices are worth.

Read in this order: ``profiles`` (the model's row and column maxima of a data set, with the true
edges), ``fit`` (the kernel that explains them best), ``choice`` (gamma, readout, or no refinement),
``study`` (the tables and curves of the paper: readouts, gamma and s), ``threshold`` (that of the
masks, fitted to validation images).
"""

from rdsnet.fitting.fit import fit_mbrm

__all__ = ["fit_mbrm"]
