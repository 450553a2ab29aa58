"""What do the nearest training pictures say?"""
