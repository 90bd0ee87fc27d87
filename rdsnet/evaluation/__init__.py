"""COCO evaluation of boxes before and after MBRM and of masks, in one run.

Read in this order: ``evaluator`` (the run), ``truth`` (annotations with ids of any kind),
``coco_results`` (detections as COCO has them), ``breakdown`` and ``table`` (AP in parts, and as
text), ``errors`` and ``thresholds`` (kinds of errors, and the score that is worth showing),
``detections`` (both from the files that an evaluation leaves), ``box_ap`` (for fitting MBRM).
"""

from rdsnet.evaluation.coco_results import instances_to_coco_json
from rdsnet.evaluation.evaluator import RDSNetEvaluator
from rdsnet.evaluation.table import results_table

__all__ = ["RDSNetEvaluator", "instances_to_coco_json", "results_table"]
