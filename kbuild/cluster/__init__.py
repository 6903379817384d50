"""Other machines' CPUs: takes what is to be loaded, hands it out in cells over a Dask cluster, gives the transcripts.

A cell is some orders on one host. Whoever runs it is a worker, who needs nothing of this machine's but the network.
"""
