"""What a person looks at: the report of a run, and the check of a data set.

Read in this order: ``report`` (report.html, section by section), ``evaluation``, ``scores``
and ``representations`` (its larger parts), ``machine`` (what a run ran on); ``data_check`` (what
``rdsnet check-data`` says and draws), ``variants`` (what augmentation makes of images).
"""

from rdsnet.reports.report import ReportHook, report_run

__all__ = ["ReportHook", "report_run"]
