"""What lies between runs: takes records, gives lists of them, histories, differences of two, baselines.

Never changes a run. An index, which is made of records and nothing else, makes it quick to ask many at once.
"""
