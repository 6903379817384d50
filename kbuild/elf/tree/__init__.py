"""What a module's init and exit call, as a tree: takes what the runs of `elf/code` tell, gives trees, JSON and DOT.

  arguments.py  what a call is given       model.py  a finished tree, in order
  collect.py    what was called from where  data.py   as JSON      dot.py  as a graph

It runs nothing and decides nothing: what could not be resolved is in the tree too, with its place.
"""
