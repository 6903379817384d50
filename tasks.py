from invoke import task
@task
def hello(c):
    import os; print("hi", os.getcwd())
