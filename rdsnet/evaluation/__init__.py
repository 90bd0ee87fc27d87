"""COCO evaluation of boxes before and after MBRM and of masks, in one run."""

from rdsnet.evaluation.coco_results import instances_to_coco_json
from rdsnet.evaluation.evaluator import RDSNetEvaluator
from rdsnet.evaluation.table import results_table

__all__ = ["RDSNetEvaluator", "instances_to_coco_json", "results_table"]
