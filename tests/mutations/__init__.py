"""Known traps of consensus stores, put back on purpose: do the tests notice?"""
