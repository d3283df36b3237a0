"""Control: decides and reports, and is never touched per byte. A file for each job."""
