"""Tables of the benchmarks' results, made when the site is built."""
def setup(app):
    return {"parallel_read_safe": True}
