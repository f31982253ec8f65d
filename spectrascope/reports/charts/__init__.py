"""What pictures of a report show, before it is decided how they are drawn.

A :class:`~spectrascope.reports.charts.chart.Chart` is plain data: axes with their ticks, points, lines, bands and bars.
``plots`` draws it with matplotlib for files, ``svg`` as inline SVG for the HTML page; like tables and Markdown,
the two cannot disagree. Standard library only.
"""
