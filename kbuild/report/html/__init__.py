"""A run as one page that stands for itself: takes the record's files, gives HTML that loads nothing from anywhere.

Whatever came from a guest, a patch or a module is text: templates escape all of it, `clean` shows what does not print,
and the page's own policy (CSP) lets no script and no style run but the two that it names by their digests.
"""
