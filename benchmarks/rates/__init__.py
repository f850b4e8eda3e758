"""Are the verdicts of the guard, and the range of `find_rate`, right?"""
