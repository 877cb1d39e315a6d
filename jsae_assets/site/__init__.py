"""The static site: what was measured, as pages that open from the file system and need neither network nor server.

    results.py          what is stored of a catalog's cells, read for the pages
    sentences.py        what a pair's numbers say, in words
    figure_numbers.py   the numbers that a figure draws
    explorer.py         latents, their contexts and connections, in files that the explorer loads when asked for
    pages.py            the pages
    serving.py          a web server for them beside the UI
    templates/, static/   their HTML, style and JavaScript

Not here: measuring (`jsae_core.measures`), drawing figures (`jsae_core.figures`), when the site is made
(`assets/site.py`). A page holds what was stored when it was made; what is missing is left out and said.
"""
