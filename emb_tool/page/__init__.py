"""`report.html`: one page without scripts, fonts or pictures from elsewhere."""
