"""The paper's tables and figures by one command, on any data: ``rdsnet paper``.

Read in this order: ``trainings`` (what is trained for which table), ``plan`` (on what, for how
long; what a folder stands for), ``runs`` (training, evaluating, going on), ``analysis`` (Table 4
and the figures of one model), ``localisation`` (Fig. 1), ``comparison`` (Fig. 4), ``speed``
(images per second in turns), ``published`` (the paper's figures), ``tables`` (ours beside them),
``beyond`` (what the paper leaves open) and ``document`` (paper.html and paper.md).
"""
