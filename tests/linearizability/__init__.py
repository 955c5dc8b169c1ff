"""Checkers of recorded histories: is what clients saw what one single copy could have answered?"""
