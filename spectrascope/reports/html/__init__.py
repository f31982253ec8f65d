"""Records as pages for a browser: single files that open offline."""
